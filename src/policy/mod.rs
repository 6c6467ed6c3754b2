//! Network policies: what a VM, or every VM of a workspace, may reach and be reached by. Pure. In: rules as people write
//! them. Out: checked rules in the order they are looked at, what is odd about them, and the verdict on a connection.
//! `walls::compile` makes the kernel's rules from the same values, so that both decide alike.

mod check;
mod decide;
mod findings;
mod spec;

pub use check::{MOST_RULES, Policy, PolicyError, Ports, Protocol, Rule};
pub use decide::{Decision, Flow, Peer, Reason, decide};
pub use findings::findings;
pub use spec::{Direction, PolicySpec, RuleSpec, Scope};
