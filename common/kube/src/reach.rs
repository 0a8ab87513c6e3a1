//! Whether the API server answers at all.

use std::time::Duration;

use http::Request;
use kube::{Client, client::Body};
use tokio::{sync::watch, time::Instant};
use tower::{BoxError, service_fn};

/// How long a client has tried in vain. An answer is an answer, whatever it says.
#[derive(Clone, Debug)]
pub struct Reach(watch::Receiver<Option<Instant>>);

impl Reach {
    /// The time since the first request that had no answer; none if the last one had one.
    pub fn silence(&self) -> Option<Duration> {
        self.0.borrow().map(|since| since.elapsed())
    }
}

/// The same client, and whether it is answered.
pub fn reach(client: &Client) -> (Client, Reach) {
    let (silent, reach) = watch::channel(None);
    let namespace = client.default_namespace().to_owned();
    let inner = client.clone();
    let service = service_fn(move |request: Request<Body>| {
        let (client, silent) = (inner.clone(), silent.clone());
        async move {
            let result = client.send(request).await;
            silent.send_modify(|since| *since = result.is_err().then(|| since.unwrap_or_else(Instant::now)));
            Ok::<_, BoxError>(result?)
        }
    });
    (Client::new(service, namespace), Reach(reach))
}
