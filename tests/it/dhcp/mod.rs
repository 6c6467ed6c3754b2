//! DHCP as real clients see it, on plumbing that somebody else made.

mod clients;
mod exchanges;
mod external;
mod hostile;
mod options;
