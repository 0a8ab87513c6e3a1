//! The user side of the socket load balancer: one table in, one set of maps out.

pub mod apply;
pub mod cli;
pub mod family;
pub mod grace;
pub mod kernel;
pub mod layout;
pub mod load;
pub mod maps;
pub mod name;
pub mod netns;
pub mod node;
pub mod pins;
pub mod print;
pub mod probe;
pub mod read;
pub mod room;
pub mod show;
pub mod space;
pub mod spec;
pub mod stats;
pub mod sys;
pub mod write;
