//! Reads the cluster once.

use cluster_api::{
    Event, Name, explain,
    kube::{Client, api::DynamicObject},
    list, status,
};
use serde_json::Value;

use crate::{
    derive::{Derived, derive},
    kind::Kind,
    survey::Options,
    world::World,
};

/// An object with its name, as kubectl prints it, with what is of use.
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
            read(client, kind, options, &mut world).await?;
        }
    }
}

async fn read(client: &Client, kind: Kind, options: &Options, world: &mut World) -> anyhow::Result<()> {
    let selection = kind.selection(options.node.as_deref());
    let keep = |object| (Name::of(&object), plain(kind, &object));
    match list(&selection.objects(client), &selection, keep).await {
        Ok(objects) => {
            objects.into_iter().for_each(|(name, object)| world.note(kind, Event::Applied(name, object)));
            world.note(kind, Event::Listed);
        }
        Err(error) if !selection.is_of_core() && status(&error).is_some_and(|status| status.code == 404) => {
            world.note(kind, Event::Absent);
        }
        Err(error) => anyhow::bail!(explain(&selection, "list", &error)),
    }
    Ok(())
}
