use super::Invalid;

/// A rate in Mbit/s (10^6 bit/s), 1 to 100,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RateMbps(u32);

impl RateMbps {
    pub const EXPECTED: &'static str = "a rate of 1 to 100000 Mbit/s";

    pub fn mbps(self) -> u32 {
        self.0
    }

    pub fn bytes_per_second(self) -> u64 {
        u64::from(self.0) * 1_000_000 / 8
    }
}

impl TryFrom<u32> for RateMbps {
    type Error = Invalid;
    fn try_from(mbps: u32) -> Result<Self, Invalid> {
        if (1..=100_000).contains(&mbps) { Ok(Self(mbps)) } else { Err(Invalid::new(mbps, Self::EXPECTED)) }
    }
}

/// What may pass at once after a quiet time, in KiB (1,024 bytes), 16 (a jumbo frame and more) to 1,048,576.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BurstKib(u32);

impl BurstKib {
    pub const EXPECTED: &'static str = "a burst of 16 to 1048576 KiB";

    pub fn kib(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for BurstKib {
    type Error = Invalid;
    fn try_from(kib: u32) -> Result<Self, Invalid> {
        if (16..=1 << 20).contains(&kib) { Ok(Self(kib)) } else { Err(Invalid::new(kib, Self::EXPECTED)) }
    }
}

/// A guest's limit, the same each way and each way for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    pub rate: RateMbps,
    /// `None` for the one that goes with the rate.
    pub burst: Option<BurstKib>,
}

impl RateLimit {
    /// The largest packet that TCP hands down unsegmented, which has to fit whole, and what a rate brings in five
    /// milliseconds: a timer that fires that late loses nothing. Small enough not to be seen in a rate over a few seconds.
    pub fn burst(self) -> BurstKib {
        const UNSEGMENTED_KIB: u64 = 65;
        let five_milliseconds = (self.rate.bytes_per_second() / 200).div_ceil(1_024);
        // At 100,000 Mbit/s this is 61,101 KiB.
        self.burst.unwrap_or(BurstKib((UNSEGMENTED_KIB + five_milliseconds.max(7)) as u32))
    }
}

/// A rate that a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    Unlimited,
    Limited(RateMbps),
}

/// What a caller asks of a limit; what is unset stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RateRequest {
    pub rate: Option<Rate>,
    pub burst: Option<BurstKib>,
}

impl RateRequest {
    /// The limit that `present` becomes; `None` for no limit. A burst without a rate limits nothing: that is an error.
    pub fn over(self, present: Option<RateLimit>) -> Result<Option<RateLimit>, BurstKib> {
        let rate = match self.rate {
            None => present.map(|limit| limit.rate),
            Some(Rate::Unlimited) => None,
            Some(Rate::Limited(rate)) => Some(rate),
        };
        match (rate, self.burst) {
            (Some(rate), burst) => {
                Ok(Some(RateLimit { rate, burst: burst.or(present.and_then(|limit| limit.burst)) }))
            }
            (None, None) => Ok(None),
            (None, Some(burst)) => Err(burst),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(mbps: u32, kib: Option<u32>) -> RateLimit {
        RateLimit { rate: mbps.try_into().unwrap(), burst: kib.map(|kib| kib.try_into().unwrap()) }
    }

    #[test]
    fn what_is_not_asked_for_stays() {
        let rate = |mbps: u32| Some(Rate::Limited(mbps.try_into().unwrap()));
        let burst = |kib: u32| Some(BurstKib::try_from(kib).unwrap());
        let present = Some(limit(100, Some(64)));
        for (asked, becomes) in [
            (RateRequest::default(), Ok(present)),
            (RateRequest { rate: rate(5), burst: None }, Ok(Some(limit(5, Some(64))))),
            (RateRequest { rate: None, burst: burst(32) }, Ok(Some(limit(100, Some(32))))),
            (RateRequest { rate: Some(Rate::Unlimited), burst: None }, Ok(None)),
            (RateRequest { rate: Some(Rate::Unlimited), burst: burst(32) }, Err(burst(32).unwrap())),
        ] {
            assert_eq!(asked.over(present), becomes, "{asked:?}");
        }
        assert_eq!(RateRequest { rate: rate(5), burst: None }.over(None), Ok(Some(limit(5, None))));
        assert!(RateRequest { rate: None, burst: burst(32) }.over(None).is_err());
    }

    #[test]
    fn an_unsegmented_packet_fits_the_burst_of_every_rate() {
        for mbps in [1, 10, 100, 1_000, 100_000] {
            assert!(limit(mbps, None).burst().kib() * 1_024 > 65_536 + 18, "{mbps}");
        }
        // Three seconds of 10 Mbit/s are not 3 % more for it.
        assert!(f64::from(limit(10, None).burst().kib()) * 1_024.0 * 8.0 < 0.03 * 3.0 * 10_000_000.0);
        assert_eq!(limit(10, Some(16)).burst().kib(), 16);
    }
}
