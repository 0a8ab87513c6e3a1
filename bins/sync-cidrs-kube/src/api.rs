//! The Kubernetes API: credentials, lists, and what its refusals mean.

use std::{collections::BTreeMap, error::Error as _, path::Path, time::Duration};

use anyhow::{Context, ensure};
use hyper_timeout::TimeoutConnector;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioExecutor};
use kube::{
    Api, Client, Config,
    api::{DynamicObject, ListParams},
    client::{ConfigExt, retry::RetryPolicy},
    config::{KubeConfigOptions, Kubeconfig},
    core::Status,
};
use serde_json::Value;
use tower::{BoxError, ServiceBuilder, retry::RetryLayer};

use crate::{
    derive::{Derived, Options, derive},
    kind::{Kind, Place},
    world::{Known, World},
};

/// An API server that has said nothing for so long is taken for dead, even if its kernel still answers for it. It says
/// something each minute (a bookmark), and ends a watch by itself before five.
const SILENCE: Duration = Duration::from_secs(90);
const CONNECT: Duration = Duration::from_secs(5);
/// A connection that has been idle for so long is probed, ...
const PROBE_AFTER: Duration = Duration::from_secs(5);
/// ... so often, ...
const PROBE_EVERY: Duration = Duration::from_secs(3);
/// ... and given up when nothing has been acknowledged for so long, nor any data that was sent on it.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// A client with the credentials of a kubeconfig, else, as kubectl does it, of `KUBECONFIG`, of the user's own
/// configuration, or of the pod's ServiceAccount. With `retry`, what the API server refuses for the moment (429, 503, 504)
/// is tried again, longer and longer; a watch has a shorter patience of its own.
///
/// # Errors
/// When there are none, or they cannot be read.
pub async fn client(kubeconfig: Option<&Path>, context: Option<&str>, retry: bool) -> anyhow::Result<Client> {
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..Default::default() };
    let mut config = match (kubeconfig, context) {
        (Some(path), _) => {
            let read = Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?;
            Config::from_custom_kubeconfig(read, &options).await.context("cannot use the kubeconfig")?
        }
        (None, Some(_)) => Config::from_kubeconfig(&options).await.context("cannot use the kubeconfig")?,
        (None, None) => Config::infer().await.context("no kubeconfig, and not in a pod with a ServiceAccount")?,
    };
    config.default_retry = retry;
    connected(config).context("cannot make a client of these credentials")
}

/// kube's own way to a client (`Client::try_from`), but with a connector that probes its connections. A firewall or a load
/// balancer that forgets a connection says nothing: without probes a watch over it would stay silent until [`SILENCE`] is
/// over, and probing costs the API server nothing, as shorter watches would.
fn connected(config: Config) -> anyhow::Result<Client> {
    ensure!(config.proxy_url.is_none(), "the kubeconfig or HTTPS_PROXY asks for a proxy, which is not supported");
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_keepalive(Some(PROBE_AFTER));
    tcp.set_keepalive_interval(Some(PROBE_EVERY));
    // With a user timeout Linux goes by that alone, and the number of probes is of no account (tcp_keepalive_timer).
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_read_timeout(Some(SILENCE));
    connector.set_write_timeout(Some(SILENCE));
    // How long a connection was idle before a request is not the API server's silence.
    connector.set_reset_reader_on_write(true);
    let retry = config.default_retry.then(|| RetryLayer::new(RetryPolicy::server_retry()));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(retry)
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace))
}

/// The objects of a place.
pub fn objects(client: &Client, place: &Place) -> Api<DynamicObject> {
    match place.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &place.resource()),
        None => Api::all_with(client.clone(), &place.resource()),
    }
}

/// Which of the objects are meant.
pub fn field_selector(kind: Kind, options: &Options) -> Option<String> {
    let own = options.node.as_deref().filter(|_| kind == Kind::OwnNode);
    own.or(kind.place().name).map(|name| format!("metadata.name={name}"))
}

/// An object as kubectl prints it, with what is of use.
pub fn plain(kind: Kind, object: &DynamicObject) -> Value {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    kind.trim(&mut value);
    value
}

/// Reads all that the CIDRs depend on, once.
///
/// # Errors
/// The first refusal, for a person.
pub async fn survey(client: &Client, options: &Options) -> anyhow::Result<Derived> {
    let mut world = World::default();
    loop {
        let derived = derive(&world, options);
        let unread: Vec<Kind> = derived.needs.iter().copied().filter(|kind| world.get(*kind).is_none()).collect();
        if unread.is_empty() {
            return Ok(derived);
        }
        for kind in unread {
            world.set(kind, list(client, kind, options).await?);
        }
    }
}

async fn list(client: &Client, kind: Kind, options: &Options) -> anyhow::Result<Known> {
    let place = kind.place();
    let parameters = ListParams {
        field_selector: field_selector(kind, options),
        label_selector: place.labels.map(str::to_owned),
        ..Default::default()
    };
    match objects(client, &place).list(&parameters).await {
        Ok(list) => Ok(Known::Objects(list.items.iter().map(|object| plain(kind, object)).collect())),
        Err(error) if status(&error).is_some_and(|status| status.code == 404) => Ok(Known::Absent),
        Err(error) => Err(anyhow::anyhow!(explain(&place, "list", &error))),
    }
}

/// The API server's own answer, where it gave one.
pub fn status(error: &kube::Error) -> Option<&Status> {
    match error {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

/// What went wrong and what to do, for a person.
pub fn explain(place: &Place, verb: &str, error: &kube::Error) -> String {
    if let Some(status) = status(error) {
        return refusal(place, verb, status);
    }
    let mut text = format!("cannot {verb} {}: {error}", place.describe());
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn refusal(place: &Place, verb: &str, status: &Status) -> String {
    let what = place.describe();
    match status.code {
        401 => format!(
            "cannot {verb} {what}: the API server does not accept our credentials (401): they have expired, or are \
             another cluster's"
        ),
        403 => format!("not allowed to {verb} {what} (403): it takes {}", place.rule(verb)),
        code => format!("cannot {verb} {what}: {} ({code})", status.message),
    }
}

/// Objects by namespace and name, as a watch keeps them.
pub type Store = BTreeMap<(String, String), Value>;

/// An object's place in a [`Store`].
pub fn key(object: &DynamicObject) -> (String, String) {
    let metadata = &object.metadata;
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}
