//! The SpiderCoordinator's status, kept by one of several writers: whoever holds the Lease `underpass`.

use std::time::Duration;

use anyhow::Context;
use cluster_api::{
    Selection,
    kube::{
        self, Client,
        api::{DynamicObject, Patch, PatchParams, PostParams},
    },
    status,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::{
    derive::Cluster,
    kind::{Kind, SYSTEM, UNDERPASS},
};

/// How long a Lease holds without being renewed, and how often it is renewed.
const LEASE: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(5);

/// What is known of somebody else's Lease: its renewal, and when it was first seen here, so that no two machines' clocks are
/// compared.
type Seen = Option<(Value, Instant)>;

/// Keeps the status for ever, while the Lease is ours.
pub async fn keep(client: Client, mut changes: watch::Receiver<Option<Cluster>>) {
    let identity = identity();
    let mut seen: Seen = None;
    let mut complaint = String::new();
    loop {
        let result = match lead(&client, &identity, &mut seen).await {
            Ok(true) => {
                let cluster = changes.borrow_and_update().clone();
                write(&client, cluster.as_ref()).await
            }
            other => other.map(|_| ()),
        };
        let said = result.err().map(|error| format!("{error:#}")).unwrap_or_default();
        if said != complaint && !said.is_empty() {
            log::error!("{said}");
        }
        complaint = said;
        // A change is written at once, and nothing more often than each second.
        let _ = timeout(RENEW, changes.changed()).await;
        sleep(Duration::from_millis(200)).await;
    }
}

fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{}", host.trim(), std::process::id())
}

/// Whether the Lease is ours, after this attempt to get or to renew it.
async fn lead(client: &Client, identity: &str, seen: &mut Seen) -> anyhow::Result<bool> {
    let resource = Selection::resource("coordination.k8s.io", "v1", "Lease", "leases").within(SYSTEM);
    let leases = resource.objects(client);
    let now = format!("{:.6}", Timestamp::now());
    let Some(mut lease) = leases.get_opt(UNDERPASS).await.context("cannot read the Lease underpass")? else {
        let mut lease = resource.new_object(UNDERPASS);
        lease.data = json!({ "spec": {
            "holderIdentity": identity, "leaseDurationSeconds": LEASE.as_secs(), "acquireTime": now, "renewTime": now,
            "leaseTransitions": 0,
        }});
        return won(leases.create(&PostParams::default(), &lease).await).context("cannot make the Lease underpass");
    };
    let spec = &mut lease.data["spec"];
    let holder = spec["holderIdentity"].as_str().unwrap_or_default();
    if holder != identity {
        let renewal = spec["renewTime"].clone();
        let since = match seen {
            Some((last, since)) if *last == renewal => *since,
            _ => seen.insert((renewal, Instant::now())).1,
        };
        let duration = spec["leaseDurationSeconds"].as_u64().map_or(LEASE, Duration::from_secs);
        if !holder.is_empty() && since.elapsed() < duration {
            return Ok(false);
        }
        log::info!("taking the Lease {UNDERPASS} over from {holder:?}");
        spec["leaseTransitions"] = json!(spec["leaseTransitions"].as_u64().unwrap_or(0) + 1);
        spec["acquireTime"] = json!(now);
    }
    spec["holderIdentity"] = json!(identity);
    spec["leaseDurationSeconds"] = json!(LEASE.as_secs());
    spec["renewTime"] = json!(now);
    // The resource version in it makes this fail if somebody else was faster.
    won(leases.replace(UNDERPASS, &PostParams::default(), &lease).await).context("cannot renew the Lease underpass")
}

fn won(result: kube::Result<DynamicObject>) -> kube::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if status(&error).is_some_and(|status| status.code == 409) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes the status where it is not as it should be.
async fn write(client: &Client, cluster: Option<&Cluster>) -> anyhow::Result<()> {
    let coordinators = Kind::SpiderCoordinator.selection(None).objects(client);
    let current = match coordinators.get_opt("default").await {
        Err(error) if status(&error).is_some_and(|status| status.code == 404) => return Ok(()),
        current => current.context("cannot read the SpiderCoordinator default")?,
    };
    let Some(current) = current else { return Ok(()) };
    let wanted = wanted(cluster);
    if current.data["status"] == wanted {
        return Ok(());
    }
    let patch = Patch::Merge(json!({ "status": wanted }));
    let patched = coordinators.patch_status("default", &PatchParams::default(), &patch).await;
    patched.map(|_| ()).context("cannot write the status of the SpiderCoordinator default")
}

/// Spiderpool's phases are Synced and NotReady.
fn wanted(cluster: Option<&Cluster>) -> Value {
    let Some(cluster) = cluster else {
        return json!({
            "phase": "NotReady", "reason": "the cluster's CIDRs are not known yet", "overlayPodCIDR": [], "serviceCIDR": []
        });
    };
    let cidrs = cluster.cidrs();
    json!({
        "phase": "Synced", "reason": cluster.problems.join("; "), "overlayPodCIDR": cidrs.pod, "serviceCIDR": cidrs.service
    })
}
