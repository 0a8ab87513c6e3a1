//! With an API server that is a function.

use http::Response;
use k8s_openapi::api::core::v1::Service;
use metrics_file::prometheus_client::registry::Registry;
use serde_json::{Value, json};

use super::*;
use crate::health::Health;

/// A client of an API server that answers each request's URI by a code and a body.
fn client(answer: impl Fn(&str) -> (u16, String) + Send + Sync + 'static) -> Client {
    let answer = Arc::new(answer);
    let service = service_fn(move |request: Request<Body>| {
        let (code, body) = answer(&request.uri().to_string());
        let response = Response::builder().status(code).body(Body::from(body.into_bytes())).unwrap();
        async move { Ok::<_, BoxError>(response) }
    });
    Client::new(service, "default")
}

fn object(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "n", "resourceVersion": "1"}})
}

/// A list that streams, and ends.
fn streamed(names: &[&str]) -> String {
    let mut end = object("");
    end["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    let all = names.iter().map(|name| ("ADDED", object(name))).chain([("BOOKMARK", end)]);
    all.map(|(what, object)| format!("{}\n", json!({"type": what, "object": object}))).collect()
}

fn paged(names: &[&str]) -> String {
    let items: Vec<Value> = names.iter().map(|name| object(name)).collect();
    json!({"apiVersion": "v1", "kind": "ServiceList", "metadata": {"resourceVersion": "2"}, "items": items}).to_string()
}

/// An API server that has the objects a and b as long as nobody stands before it; then `other` answers.
fn until_cut(cut: &watch::Receiver<bool>, other: impl Fn(&str) -> (u16, String) + Send + Sync + 'static) -> Client {
    let cut = cut.clone();
    client(move |uri| if *cut.borrow() { other(uri) } else { (200, streamed(&["a", "b"])) })
}

fn nobody(_: &str) -> (u16, String) {
    (404, "404 page not found".to_owned())
}

async fn next<T>(events: &mut (impl Stream<Item = Event<T>> + Unpin), count: usize) -> Vec<Event<T>> {
    events.take(count).collect().await
}

fn name(name: &str) -> Name {
    Name { namespace: "n".into(), name: name.into() }
}

fn has_begun(events: &[Event<()>]) {
    assert_eq!(events, [Event::Applied(name("a"), ()), Event::Applied(name("b"), ()), Event::Listed]);
}

#[tokio::test(start_paused = true)]
async fn a_404_for_what_every_api_has_is_an_error_and_what_is_known_stands() {
    let (cut, is_cut) = watch::channel(false);
    let client = until_cut(&is_cut, nobody);
    let core = Selection::resource("", "v1", "Service", "services");
    let typed = follow(&client, Selection::of::<Service>(), |_: Service| ()).boxed();
    let untyped = follow_objects(&client, core, |_| ()).boxed();
    for mut events in [typed, untyped] {
        cut.send_replace(false);
        has_begun(&next(&mut events, 3).await);
        cut.send_replace(true);
        for event in next(&mut events, 5).await {
            let Event::Failed(error) = &event else { panic!("{event:?}") };
            assert!(error.contains("services") && error.contains("(404)"), "{error}");
        }
        cut.send_replace(false);
        assert_eq!(next(&mut events, 2).await, [Event::Applied(name("a"), ()), Event::InContact]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_resource_of_no_core_is_gone_with_its_objects_when_a_404_says_so_twice() {
    let (cut, is_cut) = watch::channel(false);
    let asked = Arc::new(watch::channel(0).0);
    let count = Arc::clone(&asked);
    let client = until_cut(&is_cut, move |uri| {
        count.send_modify(|asked| *asked += 1);
        nobody(uri)
    });
    let defined = Selection::resource("example.org", "v1", "Service", "services");
    let mut events = follow_objects(&client, defined, |_| ()).boxed();
    has_begun(&next(&mut events, 3).await);
    cut.send_replace(true);
    let mut last = next(&mut events, 3).await;
    last.sort_by_key(|event| format!("{event:?}"));
    assert_eq!(last, [Event::Absent, Event::Deleted(name("a")), Event::Deleted(name("b"))]);
    assert_eq!(*asked.borrow(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_denied_is_so_until_it_is_answered_again_and_nothing_else_is() {
    let (code, says) = watch::channel(200);
    let client = client(move |uri| match *says.borrow() {
        200 if uri.contains("watch=true") => (200, streamed(&["a", "b"])),
        200 => (200, paged(&["a", "b"])),
        code => (code, "no".to_owned()),
    });
    let selection = Selection::of::<Service>();
    let mut health = Health::new(&mut Registry::default(), "Services");
    health.begin((), &selection);
    let mut events = follow(&client, selection, |_: Service| ()).boxed();
    for (now, denied) in [(200, false), (500, false), (401, true), (500, true), (200, false), (403, true), (200, false)]
    {
        code.send_replace(now);
        next(&mut events, 6).await.iter().for_each(|event| health.note(&(), event));
        assert_eq!(health.is_denied(), denied, "{now}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_denial_that_does_not_last_is_an_error_like_others_and_nothing_is_listed_for_it() {
    let (code, says) = watch::channel(200);
    let client = client(move |uri| match *says.borrow() {
        200 if uri.contains("watch=true") => (200, streamed(&["a", "b"])),
        code => (code, "no".to_owned()),
    });
    let mut events = follow(&client, Selection::of::<Service>(), |_: Service| ()).boxed();
    has_begun(&next(&mut events, 3).await);
    for denial in [401, 403, 403] {
        for code_now in [denial, 500, 500] {
            code.send_replace(code_now);
            let said = next(&mut events, 1).await;
            assert!(matches!(&said[0], Event::Failed(error) if error.contains(&format!("({code_now})"))), "{said:?}");
        }
    }
    code.send_replace(200);
    assert_eq!(next(&mut events, 2).await, [Event::Applied(name("a"), ()), Event::InContact]);
    // Where nothing is known yet, it counts at once.
    code.send_replace(403);
    let mut events = follow(&client, Selection::of::<Service>(), |_: Service| ()).boxed();
    assert!(matches!(&next(&mut events, 1).await[0], Event::Denied(_)));
}

#[tokio::test(start_paused = true)]
async fn who_refuses_a_request_and_names_no_field_of_it_is_asked_again_as_before() {
    let (cut, is_cut) = watch::channel(false);
    let client = until_cut(&is_cut, |uri| match uri.contains("fieldSelector") {
        true => (400, "<html>Bad Request</html>".to_owned()),
        false => (200, paged(&["headless"])),
    });
    let selection = Selection::of::<Service>().fields("spec.clusterIP!=None").or_without_fields();
    let mut events = follow(&client, selection, |_: Service| ()).boxed();
    has_begun(&next(&mut events, 3).await);
    cut.send_replace(true);
    let failures = next(&mut events, 2).await;
    assert!(
        failures.iter().all(|event| matches!(event, Event::Failed(error) if error.contains("(400)"))),
        "{failures:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_field_that_the_api_server_does_not_know_is_left_out_if_it_may_be_and_what_went_meanwhile_goes() {
    let (cut, is_cut) = watch::channel(false);
    let client = until_cut(&is_cut, |uri| match (uri.contains("fieldSelector"), uri.contains("watch=true")) {
        (true, _) => (400, "field label not supported: spec.clusterIP".to_owned()),
        (false, true) => (200, String::new()),
        (false, false) => (200, paged(&["b", "c"])),
    });
    let selection = Selection::of::<Service>().fields("spec.clusterIP!=None");
    let mut events = follow(&client, selection.clone().or_without_fields(), |_: Service| ()).boxed();
    has_begun(&next(&mut events, 3).await);
    cut.send_replace(true);
    assert_eq!(
        next(&mut events, 4).await,
        [Event::Applied(name("b"), ()), Event::Applied(name("c"), ()), Event::Deleted(name("a")), Event::Listed]
    );
    let mut events = follow(&client, selection, |_: Service| ()).boxed();
    assert!(matches!(&next(&mut events, 1).await[0], Event::Failed(error) if error.contains("(400)")));
}

#[tokio::test(start_paused = true)]
async fn the_first_list_may_be_the_watch_caches_and_one_after_it_may_not_be_older() {
    let lists = Arc::new(std::sync::Mutex::new(vec![]));
    let asked = lists.clone();
    let client = client(move |uri| {
        if uri.contains("sendInitialEvents") {
            return (400, "sendInitialEvents: unknown".to_owned());
        }
        if uri.contains("watch=true") {
            let expired =
                json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": ""});
            return (200, format!("{}\n", json!({"type": "ERROR", "object": expired})));
        }
        asked.lock().unwrap().push(uri.to_owned());
        (200, paged(&["a", "b"]))
    });
    let mut events = follow(&client, Selection::of::<Service>(), |_: Service| ()).boxed();
    has_begun(&next(&mut events, 3).await);
    has_begun(&next(&mut events, 3).await);
    let lists = lists.lock().unwrap();
    // An API server that is asked for pages of its cache gives all of it, and kube does not ask it so.
    assert!(lists[0].contains("resourceVersion=0&") && !lists[0].contains("limit="), "{lists:?}");
    assert!(!lists[1].contains("resourceVersion") && lists[1].contains("limit="), "{lists:?}");
}

#[tokio::test(start_paused = true)]
async fn all_is_listed_less_and_less_often_where_no_watch_follows_a_list() {
    let expired = json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": ""});
    let expired = (200, format!("{}\n", json!({"type": "ERROR", "object": expired})));
    for watched in [expired, (410, "gone".to_owned()), (403, "no".to_owned())] {
        let lists = Arc::new(watch::channel(0).0);
        let (count, answer) = (Arc::clone(&lists), watched.clone());
        let client = client(move |uri| {
            if uri.contains("sendInitialEvents") {
                return (400, "sendInitialEvents: unknown".to_owned());
            }
            if uri.contains("watch=true") {
                return answer.clone();
            }
            count.send_modify(|lists| *lists += 1);
            (200, paged(&["a", "b"]))
        });
        let events = follow(&client, Selection::of::<Service>(), |_: Service| ());
        let minute = sleep(Duration::from_secs(60));
        events.take_until(minute).for_each(|_| async {}).await;
        let lists = *lists.borrow();
        assert!(lists <= 30, "{watched:?}: {lists} lists in a minute");
    }
}
