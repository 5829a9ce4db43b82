//! The one clock of the agent.

use detector_core::time::BootTime;
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
