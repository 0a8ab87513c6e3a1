//! The cluster as `kubectl get services,endpointslices,nodes --all-namespaces --output json` prints it.

use std::{collections::BTreeMap, io::Read};

use anyhow::{Context, bail};
use cluster_api::{
    Name,
    k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    cluster::Cluster,
    slice,
    why::{self, Why},
};

/// The objects of one or more documents: a List, or an object by itself. Of an object that is there twice, the newer counts.
///
/// # Errors
/// When it is empty, not JSON, or something else than objects.
pub fn read(input: impl Read) -> anyhow::Result<Vec<Value>> {
    let mut newest: BTreeMap<[String; 3], Value> = BTreeMap::new();
    let mut documents = serde_json::Deserializer::from_reader(input).into_iter::<Value>().peekable();
    if documents.peek().is_none() {
        bail!("it is empty, and no cluster is: whoever was to print its objects failed");
    }
    for document in documents {
        let mut document = document.context("not JSON")?;
        let objects = match document.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => items,
            Some(_) => bail!("items is not a list"),
            None => vec![document],
        };
        for object in objects {
            if !object["kind"].is_string() {
                bail!("an object has no kind: expected what kubectl get --output json prints");
            }
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let metadata = &object["metadata"];
            let key = [text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"])];
            if newest.get(&key).is_none_or(|known| version(known) <= version(&object)) {
                newest.insert(key, object);
            }
        }
    }
    Ok(newest.into_values().collect())
}

/// Since Kubernetes 1.35 it says that these are numbers that grow; they always were.
fn version(object: &Value) -> u64 {
    let version = object["metadata"]["resourceVersion"].as_str();
    version.and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// What is to be said of one Service.
///
/// # Errors
/// When an object that it depends on is not as the API has it.
pub fn why(name: &Name, objects: Vec<Value>, cluster: &mut Cluster) -> anyhow::Result<Why> {
    let of = |kind: &str, object: &Value| object["kind"] == kind && object["metadata"]["namespace"] == *name.namespace;
    let (slices, others): (Vec<_>, Vec<_>) = objects
        .into_iter()
        .partition(|object| of("EndpointSlice", object) && object["metadata"]["labels"][slice::SERVICE] == *name.name);
    let service = others.iter().find(|object| of("Service", object) && object["metadata"]["name"] == *name.name);
    let service = service.map(core::Service::deserialize).transpose()?;
    let slices: Vec<_> = slices.iter().map(discovery::EndpointSlice::deserialize).collect::<Result<_, _>>()?;
    tell(cluster, others.into_iter().filter(|object| object["kind"] == "Node").collect());
    Ok(why::why(name, service.as_ref(), &slices, cluster.clients()))
}

/// Tells the cluster of each object that matters. One that is not as the API has it is named, the rest is taken.
pub fn tell(cluster: &mut Cluster, objects: Vec<Value>) {
    for object in objects {
        let wrong = match (object["apiVersion"].as_str(), object["kind"].as_str()) {
            (Some("v1"), Some("Service")) => with(&object, |object: &core::Service| cluster.service(object)),
            (Some("v1"), Some("Node")) => with(&object, |object: &core::Node| cluster.node(object)),
            (Some("discovery.k8s.io/v1"), Some("EndpointSlice")) => {
                with(&object, |object: &discovery::EndpointSlice| cluster.slice(object))
            }
            _ => Ok(()),
        };
        if let Err(error) = wrong {
            let part = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
            let kind = object["kind"].as_str().unwrap_or_default();
            cluster.refuse(&format!("{kind} {}/{}", part("namespace"), part("name")), &error.to_string());
        }
    }
}

fn with<T: DeserializeOwned>(object: &Value, take: impl FnOnce(&T)) -> serde_json::Result<()> {
    take(&T::deserialize(object)?);
    Ok(())
}
