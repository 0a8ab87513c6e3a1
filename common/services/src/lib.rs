//! The service table: what the load balancer is fed with, and what it shows.

mod claim;
mod host;
mod line;
mod name;
mod number;
mod object;
mod table;
mod time;

pub use self::{
    claim::{Claim, created},
    host::{canonical, is_host},
    line::Line,
    table::{
        Algorithm, Backend, BackendScope, Change, Draining, Node, Nodes, Protocol, Refuse, Service, ServiceAddress,
        ServiceName, ServiceTable, SessionAffinity, TrafficPolicy,
    },
    time::{nanoseconds, rfc3339, seconds},
};
