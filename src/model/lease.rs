use std::fmt;
use std::time::SystemTime;

/// What a guest has made of its reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LeaseState {
    /// It has never asked.
    #[default]
    Reserved,
    Offered,
    Bound,
    /// Bound once, not renewed in time. The reservation stands.
    Expired,
    Released,
    /// It said that another host answers for its address.
    Declined,
}

impl fmt::Display for LeaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Reserved => "reserved",
            Self::Offered => "offered",
            Self::Bound => "bound",
            Self::Expired => "expired",
            Self::Released => "released",
            Self::Declined => "declined",
        })
    }
}

/// The guest's side of a reservation, as `lease list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeaseView {
    pub state: LeaseState,
    /// When the guest last spoke DHCP.
    pub last_seen: Option<SystemTime>,
    /// When the lease ends unless renewed; of a bound lease only, `None` for one without end.
    pub expires_at: Option<SystemTime>,
    /// Option 60 as the guest sent it, control characters replaced; shown, never trusted.
    pub vendor_class: Option<String>,
    /// The host name that the guest would like (options 81 and 12): shown, never granted.
    pub wished_hostname: Option<String>,
    /// What it last sent and what became of it; none since the service started.
    pub last_exchange: Option<LastExchange>,
}

/// A guest's last message and its answer, in the field's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastExchange {
    pub asked: &'static str,
    pub outcome: &'static str,
}

impl fmt::Display for LastExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.asked, self.outcome)
    }
}
