//! A watch that never ends, as events that a store can take as they are.
//!
//! kube's watcher lists, watches and resumes. What is added here: objects are cut down as they arrive; what is gone after
//! another list is said; a resource that the API need not have is no error; an API server without streaming lists gets pages,
//! and one that does not know a field is asked without it; and one is told when the API server answers again after an error,
//! even if nothing has changed meanwhile.

use std::{
    collections::{HashSet, VecDeque},
    fmt::Debug,
    mem,
    sync::Arc,
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use http::Request;
use kube::{
    Api, Client, Resource,
    api::DynamicObject,
    client::Body,
    runtime::watcher::{self, Config, InitialListStrategy, ListSemantic, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tower::{BoxError, service_fn};

use crate::{name::Name, refusal, selection::Selection};

#[cfg(test)]
mod tests;

/// From one attempt to the next after an error: doubled each time, up to the limit, and a random part more, so that the
/// nodes of a cluster do not come all at once.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));
/// The same for a resource that the API does not have: it may come.
const ABSENT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// An error after so long without one has nothing to do with those before it.
const CALM: Duration = Duration::from_secs(30);
/// No watch is started sooner after another, should the API server end each at once.
const PACE: Duration = Duration::from_millis(200);

/// What a watch has to say.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<T> {
    /// There is this object, new or changed.
    Applied(Name, T),
    /// This object is gone.
    Deleted(Name),
    /// All objects that there are have been said: once at the beginning, and again when all had to be listed anew.
    Listed,
    /// The API does not have this resource ([`follow_objects`]): there are no such objects, until [`Event::Listed`].
    Absent,
    /// The API server answers again after [`Event::Failed`] or [`Event::Denied`].
    InContact,
    /// What went wrong, for a person. What is known stands; it is tried again.
    Failed(String),
    /// The same, where the API server does answer, and denies us what we ask for (401, 403), until [`Event::Listed`]. Of what is
    /// known already only for seconds: one that has just started may not know yet who may do what.
    Denied(String),
}

/// Follows the objects of a type, in all namespaces, for ever. An expired resource version, a lost connection and a
/// restarted API server end in another watch from where the last one was, or in another list. Of each object stays what
/// `keep` makes of it. Every API has these types: who says 404 is not the API server, and that is an error like others.
pub fn follow<K, T, F>(
    client: &Client,
    selection: Selection,
    keep: F,
) -> impl Stream<Item = Event<T>> + Send + use<K, T, F>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    T: Send + 'static,
    F: Fn(K) -> T + Send + 'static,
{
    let (client, answers) = observed(client);
    events(Api::all(client), selection, false, answers, keep)
}

/// The same for objects that have no type here. A resource that is not of the core may be absent.
pub fn follow_objects<T, F>(
    client: &Client,
    selection: Selection,
    keep: F,
) -> impl Stream<Item = Event<T>> + Send + use<T, F>
where
    T: Send + 'static,
    F: Fn(DynamicObject) -> T + Send + 'static,
{
    let (client, answers) = observed(client);
    let optional = !selection.is_of_core();
    events(selection.objects(&client), selection, optional, answers, keep)
}

fn events<K, T, F>(
    api: Api<K>,
    selection: Selection,
    optional: bool,
    answers: watch::Receiver<()>,
    keep: F,
) -> impl Stream<Item = Event<T>> + Send + use<K, T, F>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    T: Send + 'static,
    F: Fn(K) -> T + Send + 'static,
{
    let follower = Follower {
        source: None,
        streaming: true,
        has_listed: false,
        listed: None,
        known: HashSet::new(),
        failed: false,
        denied: None,
        pause: None,
        retry: None,
        erred: None,
        later: None,
        absent: None,
        events: VecDeque::new(),
        api,
        selection,
        optional,
        answers,
        keep,
    };
    stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await;
        Some((event, follower))
    })
}

/// What one watch knows.
struct Follower<K, T, F> {
    api: Api<K>,
    selection: Selection,
    /// Whether the API may be without the resource.
    optional: bool,
    keep: F,
    /// Changes whenever the API server answers.
    answers: watch::Receiver<()>,
    /// kube's watcher; none when all is to begin anew.
    source: Option<BoxStream<'static, watcher::Result<watcher::Event<K>>>>,
    /// Whether the API server is asked for a streaming list, not for pages: for the first, since kube takes one from the cache,
    /// whatever semantic it is given.
    streaming: bool,
    /// Whether there was a whole list before.
    has_listed: bool,
    /// What a list that is not complete yet has had.
    listed: Option<HashSet<Name>>,
    known: HashSet<Name>,
    failed: bool,
    /// Since when it answers nothing but denials.
    denied: Option<Instant>,
    /// How long to wait before the source is asked again.
    pause: Option<Duration>,
    /// How long to wait next.
    retry: Option<ExponentialBackoff>,
    /// When the last error was.
    erred: Option<Instant>,
    /// How long to wait where the API server says "later".
    later: Option<ExponentialBackoff>,
    absent: Option<ExponentialBackoff>,
    /// What is still to be said.
    events: VecDeque<Event<T>>,
}

impl<K, T, F> Follower<K, T, F>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    F: Fn(K) -> T,
{
    async fn next(&mut self) -> Event<T> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            if let Some(pause) = self.pause {
                sleep(pause).await;
                self.pause = None;
            }
            let source = match self.source.take() {
                Some(source) => source,
                None => watcher(self.api.clone(), self.config()).boxed(),
            };
            let source = self.source.insert(source);
            tokio::select! {
                biased;
                Some(news) = source.next() => match news {
                    Ok(event) => self.take(event),
                    Err(error) => self.recover(error),
                },
                Ok(()) = self.answers.changed(), if self.failed => self.in_contact(),
            }
        }
    }

    /// The first list may come from the API server's watch cache, which spares etcd all nodes' at once: as client-go's reflector
    /// has it. What the cache has is all of it or nothing: kube asks etcd instead if it is to come in pages. A later list is the
    /// most recent one, since another API server's cache may be behind what is known already.
    fn config(&self) -> Config {
        let (list_semantic, page_size) = match self.has_listed {
            false => (ListSemantic::Any, None),
            true => (ListSemantic::MostRecent, Config::default().page_size),
        };
        Config {
            list_semantic,
            page_size,
            label_selector: self.selection.label_selector(),
            field_selector: self.selection.field_selector(),
            initial_list_strategy: if self.streaming {
                InitialListStrategy::StreamingList
            } else {
                InitialListStrategy::ListWatch
            },
            ..Config::default()
        }
    }

    fn take(&mut self, event: watcher::Event<K>) {
        match event {
            watcher::Event::Init => {
                // A streaming list that ended before it was complete: perhaps the API server has none.
                if self.listed.replace(HashSet::new()).is_some() && self.streaming {
                    self.begin_with_pages();
                }
                return;
            }
            watcher::Event::InitApply(object) => {
                let name = Name::of(&object);
                self.listed.get_or_insert_default().insert(name.clone());
                self.apply(name, object);
            }
            watcher::Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                self.keep_only(listed);
                (self.has_listed, self.streaming) = (true, false);
                self.events.push_back(Event::Listed);
            }
            watcher::Event::Apply(object) => self.apply(Name::of(&object), object),
            watcher::Event::Delete(object) => {
                let name = Name::of(&object);
                self.known.remove(&name);
                self.events.push_back(Event::Deleted(name));
            }
        }
        self.in_contact();
    }

    fn apply(&mut self, name: Name, object: K) {
        self.known.insert(name.clone());
        self.events.push_back(Event::Applied(name, (self.keep)(object)));
    }

    /// All others that were known are gone.
    fn keep_only(&mut self, listed: HashSet<Name>) {
        let before = mem::replace(&mut self.known, listed);
        let gone = before.into_iter().filter(|name| !self.known.contains(name));
        self.events.extend(gone.map(Event::Deleted));
    }

    fn in_contact(&mut self) {
        (self.denied, self.later, self.absent) = (None, None, None);
        if mem::take(&mut self.failed) {
            self.events.push_back(Event::InContact);
        }
    }

    /// Longer and longer, also where a list succeeds each time: one that no watch follows is not to be had again at once.
    fn wait(&mut self) {
        let now = Instant::now();
        if self.erred.replace(now).is_some_and(|last| now - last >= CALM) {
            self.retry = None;
        }
        self.pause = self.retry.get_or_insert_with(|| backoff(RETRY)).next();
    }

    fn begin_with_pages(&mut self) {
        (self.streaming, self.source, self.listed) = (false, None, None);
    }

    /// What is known stands, until there is the other list.
    fn begin_with(&mut self, wider: Selection) {
        log::info!(
            "the API server does not know the fields of {}: what they leave out is fetched too",
            self.selection.describe_narrowly()
        );
        (self.selection, self.source, self.listed) = (wider, None, None);
    }

    /// Says what happened, and how long to wait.
    fn recover(&mut self, error: watcher::Error) {
        let code = code(&error);
        self.denied = matches!(code, Some(401 | 403)).then(|| self.denied.unwrap_or_else(Instant::now));
        match (code, &error) {
            // The resource version has expired: nothing is wrong. Where a watch is refused for it, the watcher does not list.
            (Some(410), _) => {
                self.source = None;
                self.wait();
            }
            (Some(404), _) if self.optional => {
                (self.source, self.listed) = (None, None);
                // What there was is believed to be gone when it is said twice: an API server that has just started may not
                // know all of its definitions yet.
                let again = self.absent.is_some();
                self.pause = self.absent.get_or_insert_with(|| backoff(ABSENT)).next();
                if again || self.known.is_empty() {
                    self.keep_only(HashSet::new());
                    self.events.push_back(Event::Absent);
                }
            }
            // What an API server says that has no streaming lists, or not for this resource. Who may not watch may still list.
            (Some(400 | 403 | 422), watcher::Error::WatchStartFailed(_)) if self.streaming => self.begin_with_pages(),
            // What an API server says that does not know a field.
            (Some(400), _) if let Some(wider) = self.selection.without_fields(&error.to_string()) => {
                self.begin_with(wider);
            }
            // A lost connection: what comes of it shows when the next watch is started.
            (None, watcher::Error::WatchFailed(kube::Error::ReadEvents(_))) => {}
            _ => {
                if code == Some(429) {
                    // An API server says it whose cache is not filled yet: an error when it goes on.
                    self.pause = self.later.get_or_insert_with(|| backoff(RETRY)).next();
                    if self.pause < Some(RETRY.1) {
                        return;
                    }
                } else {
                    self.wait();
                }
                self.failed = true;
                self.answers.mark_unchanged();
                let text = text(&self.selection, &error);
                let lasts = |since: Instant| !self.has_listed || since.elapsed() >= RETRY.1;
                self.events.push_back(if self.denied.is_some_and(lasts) {
                    // However long that lasts: a whole list says when all is known again.
                    (self.source, self.listed) = (None, None);
                    Event::Denied(text)
                } else {
                    Event::Failed(text)
                });
            }
        }
    }
}

/// How long to wait until the API server is asked again, each time longer, from `least` to `most`.
pub fn backoff((least, most): (Duration, Duration)) -> ExponentialBackoff {
    let builder = ExponentialBuilder::default().with_min_delay(least).with_max_delay(most).with_factor(2.0);
    builder.with_jitter().without_max_times().build()
}

/// The API server's code, where it gave one.
fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::WatchError(status) => Some(status.code),
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => refusal::status(error).map(|status| status.code),
        watcher::Error::NoResourceVersion => None,
    }
}

fn text(selection: &Selection, error: &watcher::Error) -> String {
    match error {
        watcher::Error::WatchError(status) => refusal::refusal(selection, "watch", status),
        watcher::Error::InitialListFailed(error) => refusal::explain(selection, "list", error),
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
            refusal::explain(selection, "watch", error)
        }
        watcher::Error::NoResourceVersion => format!("cannot watch {}: {error}", selection.describe()),
    }
}

/// The client as one watch has it: it says when the API server has answered, and starts watches at a pace.
fn observed(client: &Client) -> (Client, watch::Receiver<()>) {
    let (answered, answers) = watch::channel(());
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let shared = Arc::new((answered, Mutex::new(pace)));
    let namespace = client.default_namespace().to_owned();
    let inner = client.clone();
    let service = service_fn(move |request: Request<Body>| {
        let (client, shared) = (inner.clone(), Arc::clone(&shared));
        async move {
            let (answered, pace) = &*shared;
            if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
                pace.lock().await.tick().await;
            }
            let response = client.send(request).await?;
            if response.status().is_success() {
                answered.send_replace(());
            }
            Ok::<_, BoxError>(response)
        }
    });
    (Client::new(service, namespace), answers)
}
