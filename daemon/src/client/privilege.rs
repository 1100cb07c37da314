//! Whether a client has a right that the kernel would otherwise look for in the daemon.

use std::fs;

const CAP_SYS_ADMIN: u32 = 21;

/// Has thread `tid` CAP_SYS_ADMIN in our user namespace? Where that cannot be found out: no.
pub fn is_admin(tid: u32) -> bool {
    let same_namespace = || {
        let theirs = fs::read_link(format!("/proc/{tid}/ns/user")).ok()?;
        Some(theirs == fs::read_link("/proc/self/ns/user").ok()?)
    };
    let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    has_capability(&status, CAP_SYS_ADMIN) && same_namespace() == Some(true)
}

fn has_capability(status: &str, capability: u32) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .is_some_and(|bits| bits & (1 << capability) != 0)
}

#[cfg(test)]
mod tests {
    use super::{CAP_SYS_ADMIN, has_capability};

    #[test]
    fn the_effective_set_decides() {
        assert!(has_capability(
            "CapPrm:\t0\nCapEff:\t000001ffffffffff\n",
            CAP_SYS_ADMIN
        ));
        assert!(!has_capability(
            "CapPrm:\t000001ffffffffff\nCapEff:\t0000000000000000\n",
            CAP_SYS_ADMIN
        ));
        assert!(!has_capability("", CAP_SYS_ADMIN));
    }
}
