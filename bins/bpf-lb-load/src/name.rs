//! What `names` holds of a service.

use std::collections::BTreeMap;

use bpf_lb_abi::{NAME_LEN, Name};
use service_table::ServiceName;

use crate::{
    family::{number, protocol},
    spec::Spec,
};

/// The record of no service.
pub const NONE: Name =
    Name { name: [0; NAME_LEN], port: 0, node_port: 0, protocol: 0, flags: 0, affinity_seconds: 0, created: 0 };

/// What a record that is of a service begins with.
const TAKEN: u8 = 1;

/// The record of the service `key`.
pub fn encode(key: &ServiceName, spec: &Spec) -> Name {
    let mut name = [0; NAME_LEN];
    let text = [&key.namespace, &key.name, &key.port_name].map(String::as_bytes).join(&0);
    for (place, byte) in name.iter_mut().zip([&[TAKEN], &text[..]].concat()) {
        *place = byte;
    }
    let flag = |set: bool, flag: u16| if set { flag } else { 0 };
    Name {
        name,
        port: spec.port,
        node_port: spec.node_port.unwrap_or_default(),
        protocol: number(spec.protocol),
        flags: flag(spec.internal_local, Name::INTERNAL_LOCAL)
            | flag(spec.external_local, Name::EXTERNAL_LOCAL)
            | flag(spec.least_connections, Name::LEAST),
        affinity_seconds: spec.affinity_seconds.unwrap_or_default(),
        created: spec.created.unwrap_or(u32::MAX),
    }
}

/// The inverse of [`encode`]: the name, and a service without frontends and backends. Nothing if there is none.
pub fn decode(record: &Name) -> Option<(ServiceName, Spec)> {
    let (_, text) = record.name.split_first().filter(|(first, _)| **first == TAKEN)?;
    let mut parts = text.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned());
    let (namespace, name, port_name) = (parts.next()?, parts.next()?, parts.next()?);
    let key = ServiceName { namespace, name, port_name };
    let spec = Spec {
        port: record.port,
        node_port: (record.node_port != 0).then_some(record.node_port),
        protocol: protocol(record.protocol),
        internal_local: record.flags & Name::INTERNAL_LOCAL != 0,
        external_local: record.flags & Name::EXTERNAL_LOCAL != 0,
        least_connections: record.flags & Name::LEAST != 0,
        created: (record.created != u32::MAX).then_some(record.created),
        affinity_seconds: (record.affinity_seconds != 0).then_some(record.affinity_seconds),
        frontends: BTreeMap::new(),
        sets: BTreeMap::new(),
    };
    Some((key, spec))
}
