//! How much memory processes take. PSS counts a page that several processes share in parts, so that the sum
//! over processes is what the machine has lost; RSS counts it for each.

use std::fs;

/// PSS of a process in KiB, if the system lets this process see it.
pub(super) fn pss_kib(process: u32) -> Option<u64> {
    field(
        &fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?,
        "Pss:",
    )
}

/// Largest RSS of this process so far, in KiB.
pub(super) fn peak_rss_kib() -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_size() {
        let pss = pss_kib(std::process::id()).unwrap();
        let peak = peak_rss_kib().unwrap();
        assert!(pss > 100 && peak >= pss, "PSS {pss} KiB, peak RSS {peak} KiB");
        assert_eq!(pss_kib(u32::MAX), None);
        assert_eq!(field("Rss:  5 kB\nPss:      12 kB\n", "Pss:"), Some(12));
    }
}
