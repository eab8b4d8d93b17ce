//! What a process has used.

use nix::sys::resource::{UsageWho, getrusage};

/// Processor time of this process so far, user and system, in seconds.
#[must_use]
pub fn cpu_seconds() -> f64 {
    use nix::sys::time::TimeValLike;
    let micros =
        getrusage(UsageWho::RUSAGE_SELF).map(|u| u.user_time().num_microseconds() + u.system_time().num_microseconds());
    #[expect(clippy::cast_precision_loss, reason = "exact for 285 years")]
    micros.map_or(0.0, |m| m as f64 / 1e6)
}

/// Largest resident set of this process so far, in bytes.
#[must_use]
pub fn peak_rss_bytes() -> u64 {
    // Where there is a /proc: the maximum of getrusage survives exec and would count the parent's memory.
    let kib = status_kib("VmHWM:");
    kib.or_else(|| getrusage(UsageWho::RUSAGE_SELF).ok().and_then(|u| u64::try_from(u.max_rss()).ok()))
        .unwrap_or(0)
        .saturating_mul(1024)
}

/// Resident set of this process now, in bytes; 0 where the system does not say.
#[must_use]
pub fn resident_bytes() -> u64 {
    status_kib("VmRSS:").unwrap_or(0).saturating_mul(1024)
}

/// A number of the system's account of this process, in KiB.
fn status_kib(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}
