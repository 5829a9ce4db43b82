//! The one clock of the agent.

use detector_core::time::BootTime;
use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};

/// Now, on the clock that the kernel stamps its records with.
///
/// # Panics
/// Where the kernel has no `CLOCK_BOOTTIME`: older than Linux 2.6.39, on which nothing else of the
/// agent runs either.
pub fn now() -> BootTime {
    let time =
        clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME is there since Linux 2.6.39");
    let nanos = u64::try_from(time.tv_sec())
        .unwrap_or(0)
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(time.tv_nsec()).unwrap_or(0));
    BootTime::from_nanos(nanos)
}

/// What the wall clock showed, or would have shown, at boot. By it times since boot are told as times
/// of day; a step of the wall clock moves what is told later, never the distance between two times of
/// one report.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct BootWall(Timestamp);

impl BootWall {
    /// By both clocks, now.
    pub fn now() -> Self {
        let wall = Timestamp::now();
        Self(wall.checked_sub(since_boot(now())).unwrap_or(wall))
    }

    /// The time of day for a time since boot.
    pub fn at(self, time: BootTime) -> Timestamp {
        self.0.checked_add(since_boot(time)).unwrap_or(self.0)
    }

    /// The time since boot for a time of day; boot itself where that was earlier.
    pub fn since_boot(self, wall: Timestamp) -> BootTime {
        let nanos = wall.duration_since(self.0).as_nanos();
        BootTime::from_nanos(u64::try_from(nanos.max(0)).unwrap_or(u64::MAX))
    }

    /// Whether the wall clock has moved against the kernel's by more than reading both one after the
    /// other can explain.
    pub fn has_moved_from(self, other: Self) -> bool {
        self.0.duration_since(other.0).abs() > SignedDuration::from_millis(1)
    }
}

fn since_boot(time: BootTime) -> SignedDuration {
    SignedDuration::from_nanos(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    /// `/proc/uptime` counts on the same clock, in hundredths of a second.
    #[test]
    fn it_is_the_time_since_boot() {
        let before = now();
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let kernel = BootTime::ZERO.after(Duration::from_secs_f64(seconds));
        assert!(kernel.after(Duration::from_millis(20)) >= before, "{kernel:?} {before:?}");
        assert!(now().after(Duration::from_millis(20)) >= kernel);
        assert!(now().since(kernel) < Duration::from_mins(1));
    }
}
