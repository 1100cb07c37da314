//! Whose dma-bufs may be imported into which kind of queue: a table, and what an operator has changed of it.
//!
//! A driver does not say how it uses what it imports, and an exporter not what it gives. What is not known to work is
//! copied: an import that goes wrong shows as frames that never arrive, or takes the kernel down.

use std::fmt;
use std::str::FromStr;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// How a queue uses what it imports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Importer {
    /// `vb2-vmalloc`: by the processor, through a kernel mapping (uvcvideo, most USB, vivid's default).
    Vmalloc,
    /// By DMA that wants one contiguous piece (`vb2-dma-contig` without IOMMU): it has refused scattered memory.
    Contiguous,
    /// By DMA that takes pieces (`vb2-dma-sg`, or an IOMMU).
    Scattered,
    /// It takes scattered memory, or has not been asked; which way is unknown.
    Unknown,
}

impl Importer {
    const ALL: [(Self, &str); 4] = [
        (Self::Vmalloc, "vmalloc"),
        (Self::Contiguous, "contiguous"),
        (Self::Scattered, "scattered"),
        (Self::Unknown, "unknown"),
    ];
}

impl fmt::Display for Importer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(importer, _)| importer == self);
        f.write_str(name.map_or("?", |(_, name)| name))?;
        f.write_str(" queue")
    }
}

/// What may be done with a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Import. What the device refuses nevertheless is copied.
    Import,
    /// Copy, unless an operator allows the import.
    Bounce,
    /// Copy: the kernel does not survive the import.
    Never,
}

use Verdict::{Bounce, Import, Never};

/// Exporters by the `exp_name` of their fdinfo; then what an import into a [`Importer::Vmalloc`], `Contiguous`,
/// `Scattered` and `Unknown` queue is. The last row is for all others.
///
/// `drm` is every DRM driver without an export of its own, bochs' VRAM among them: I/O memory in vb2-vmalloc hits
/// `BUG_ON(!iosys_map_is_equal)` when it is freed (dma-buf.c:1593, videobuf2-vmalloc.c:374).
/// `memfd` is no exporter: a client's memfd that we make a udmabuf of. That pins the client's pages for as long as the
/// buffer is bound, which we promise not to do unless the operator wants it.
const PAIRS: &[(&str, [Verdict; 4])] = &[
    ("system", [Import, Import, Import, Import]),
    ("linux,cma", [Import, Import, Import, Import]),
    ("reserved", [Import, Import, Import, Import]),
    ("udmabuf", [Import, Import, Import, Import]),
    ("videobuf2_vmalloc", [Import, Bounce, Import, Import]),
    ("videobuf2_dma_contig", [Import, Import, Import, Import]),
    ("videobuf2_dma_sg", [Import, Bounce, Import, Import]),
    ("virtio_gpu", [Import, Bounce, Bounce, Import]),
    ("drm", [Never, Bounce, Bounce, Never]),
    ("memfd", [Bounce, Bounce, Bounce, Bounce]),
    ("*", [Bounce, Bounce, Bounce, Bounce]),
];

/// The table and an operator's changes.
#[derive(Debug, Default)]
pub struct Policy {
    rules: RwLock<Vec<Rule>>,
}

impl Clone for Policy {
    fn clone(&self) -> Self {
        Self::new(self.rules().clone())
    }
}

/// One change, as `EXPORTER:QUEUE=allow` or `=forbid` says it; `*` is every exporter or every queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    exporter: String,
    importer: Option<Importer>,
    allow: bool,
}

/// What is wrong with a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// It does not look like one.
    #[error("`{0}` is no rule such as virtio_gpu:vmalloc=forbid or memfd:*=allow")]
    Form(String),
    /// There is no such kind of queue.
    #[error("`{0}` is none of vmalloc, contiguous, scattered, unknown and *")]
    Queue(String),
    /// The import of this pair is never allowed.
    #[error("{0} in a {1} hits a kernel bug when the buffer is freed; it cannot be allowed")]
    Deadly(String, Importer),
}

impl FromStr for Rule {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let form = || PolicyError::Form(text.to_owned());
        let (pair, verdict) = text.split_once('=').ok_or_else(form)?;
        let (exporter, queue) = pair.rsplit_once(':').ok_or_else(form)?;
        let allow = match verdict {
            "allow" => true,
            "forbid" => false,
            _ => return Err(form()),
        };
        if exporter.is_empty() {
            return Err(form());
        }
        let importer = match queue {
            "*" => None,
            queue => {
                let known = Importer::ALL.iter().find(|(_, name)| *name == queue);
                Some(known.ok_or_else(|| PolicyError::Queue(queue.to_owned()))?.0)
            }
        };
        if allow && let Some(importer) = importer.filter(|importer| of_table(exporter, *importer) == Never) {
            return Err(PolicyError::Deadly(exporter.to_owned(), importer));
        }
        Ok(Self {
            exporter: exporter.to_owned(),
            importer,
            allow,
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |importer| Importer::ALL.iter().find(|(each, _)| *each == importer);
        let queue = self.importer.and_then(name).map_or("*", |(_, name)| name);
        let verdict = if self.allow { "allow" } else { "forbid" };
        write!(f, "{}:{queue}={verdict}", self.exporter)
    }
}

fn of_table(exporter: &str, importer: Importer) -> Verdict {
    let row = PAIRS.iter().find(|(name, _)| *name == exporter || *name == "*");
    let column = Importer::ALL.iter().position(|(each, _)| *each == importer);
    row.zip(column)
        .map_or(Bounce, |((_, verdicts), column)| verdicts[column])
}

impl Policy {
    /// The table with these changes, of which the last that fits counts.
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        let rules = RwLock::new(rules);
        Self { rules }
    }

    /// Other changes from now on; what is imported already stays.
    pub fn change(&self, rules: Vec<Rule>) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    fn rules(&self) -> RwLockReadGuard<'_, Vec<Rule>> {
        // Changed by one assignment: never half done.
        self.rules.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// May a dma-buf of `exporter` be imported into this kind of queue?
    #[must_use]
    pub fn verdict(&self, exporter: &str, importer: Importer) -> Verdict {
        let of_table = of_table(exporter, importer);
        let fits = |rule: &&Rule| {
            (rule.exporter == "*" || rule.exporter == exporter)
                && rule.importer.is_none_or(|of_rule| of_rule == importer)
        };
        match self.rules().iter().rev().find(fits) {
            _ if of_table == Never => Never,
            Some(rule) if rule.allow => Import,
            Some(_) => Bounce,
            None => of_table,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Importer, PAIRS, Policy, PolicyError, Rule, Verdict};

    fn policy(rules: &[&str]) -> Policy {
        Policy::new(rules.iter().map(|rule| rule.parse().expect("a rule")).collect())
    }

    #[test]
    fn io_memory_is_never_imported_into_vmalloc_whatever_the_operator_says() {
        for importer in [Importer::Vmalloc, Importer::Unknown] {
            assert_eq!(policy(&["*:*=allow"]).verdict("drm", importer), Verdict::Never);
        }
        assert_eq!(
            "drm:vmalloc=allow".parse::<Rule>(),
            Err(PolicyError::Deadly("drm".to_owned(), Importer::Vmalloc))
        );
    }

    #[test]
    fn what_nobody_knows_is_copied_until_it_is_allowed() {
        assert_eq!(
            Policy::default().verdict("i915", Importer::Vmalloc),
            Verdict::Bounce
        );
        assert_eq!(
            policy(&["i915:*=allow"]).verdict("i915", Importer::Vmalloc),
            Verdict::Import
        );
        assert_eq!(
            policy(&["i915:*=allow"]).verdict("xe", Importer::Vmalloc),
            Verdict::Bounce
        );
    }

    #[test]
    fn the_last_rule_that_fits_counts() {
        let policy = policy(&["*:*=forbid", "system:*=allow", "system:contiguous=forbid"]);
        assert_eq!(policy.verdict("system", Importer::Vmalloc), Verdict::Import);
        assert_eq!(policy.verdict("system", Importer::Contiguous), Verdict::Bounce);
        assert_eq!(policy.verdict("udmabuf", Importer::Vmalloc), Verdict::Bounce);
    }

    #[test]
    fn a_rule_is_written_as_it_is_read_and_changes_count_at_once() {
        for text in ["system:*=allow", "*:vmalloc=forbid"] {
            assert_eq!(text.parse::<Rule>().expect("a rule").to_string(), text);
        }
        let policy = policy(&["system:*=forbid"]);
        policy.change(Vec::new());
        assert_eq!(policy.verdict("system", Importer::Vmalloc), Verdict::Import);
    }

    #[test]
    fn a_rule_that_is_none_says_what_is_wrong_with_it() {
        for text in [
            "",
            "system",
            "system:vmalloc",
            "system=allow",
            ":*=allow",
            "system:*=yes",
        ] {
            assert_eq!(text.parse::<Rule>(), Err(PolicyError::Form(text.to_owned())));
        }
        assert_eq!(
            "system:cma=allow".parse::<Rule>(),
            Err(PolicyError::Queue("cma".to_owned()))
        );
    }

    #[test]
    fn every_exporter_stands_in_the_table_once_and_the_rest_comes_last() {
        for (at, (name, _)) in PAIRS.iter().enumerate() {
            assert!(PAIRS[..at].iter().all(|(other, _)| other != name), "{name}");
        }
        assert_eq!(PAIRS.last().map(|(name, _)| *name), Some("*"));
    }
}
