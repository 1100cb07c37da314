//! Would a legacy program work on this V4L2 device? From what is known of it, and nothing else.

use super::log::Refused;
use super::{Finding, Level};

/// What a device has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    /// Kinds of memory that it takes buffers of. `vb2`: its driver is one of vb2's, which nearly all are.
    Known {
        userptr: bool,
        mmap: bool,
        dmabuf: bool,
        vb2: bool,
    },
    /// It has no buffers: a radio, or a node that is read and written only.
    NoBuffers,
    /// Somebody uses it: it is left alone.
    Busy,
    /// It may not be opened.
    Denied {
        /// Whose it is.
        owner: String,
        /// How one gets there.
        advice: String,
    },
    /// It takes too long.
    Hangs,
    /// Why not: a sentence.
    Broken(String),
}

/// The node of ours before it, as a program that opens it finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ours {
    /// There is none.
    None,
    /// There is something else at the path where ours would be.
    Other {
        path: String,
        /// What it is.
        what: String,
    },
    /// It answers.
    Answers { path: String },
    /// It may not be opened.
    Denied {
        path: String,
        owner: String,
        advice: String,
    },
    /// It does not.
    Fails { path: String, why: String },
}

/// What is known of a device.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// The path that programs use.
    pub(super) path: String,
    /// Driver and card.
    pub(super) name: String,
    pub(super) memory: Memory,
    /// How it uses what it imports, where the modules tell.
    pub(super) importer: Option<String>,
    /// Who uses it, as far as that can be seen.
    pub(super) users: String,
    pub(super) ours: Ours,
    /// Ours stands at `path`.
    pub(super) taken_over: bool,
    /// Can it have a side node?
    pub(super) can_be_served: bool,
    /// Is there a vidcompatd?
    pub(super) daemon_runs: bool,
}

impl Facts {
    /// `USERPTR, MMAP; vmalloc queue`
    fn memories(&self) -> String {
        let Memory::Known {
            userptr,
            mmap,
            dmabuf,
            vb2,
        } = self.memory
        else {
            return String::new();
        };
        let kinds = [(userptr, "USERPTR"), (mmap, "MMAP"), (dmabuf, "DMABUF")];
        let mut names: Vec<_> = kinds
            .into_iter()
            .filter(|(has, _)| *has)
            .map(|(_, name)| name)
            .collect();
        if names.is_empty() {
            names.push("no memory that we know");
        }
        let mut text = names.join(", ");
        match &self.importer {
            Some(importer) => text += &format!("; {importer}"),
            None if !vb2 => text += "; no vb2 driver",
            None => {}
        }
        text
    }

    /// Does a program that insists on USERPTR fail without us?
    pub(super) fn needs_us(&self) -> bool {
        matches!(self.memory, Memory::Known { userptr: false, .. })
    }

    /// May it be this device that has refused that, and would it do so again, since programs have no node of ours there?
    pub(super) fn may_have(&self, refused: Refused) -> bool {
        let is_of_this_kind = match self.memory {
            Memory::Known { userptr, .. } => userptr == (refused == Refused::ThisPointer),
            Memory::NoBuffers => false,
            Memory::Busy | Memory::Denied { .. } | Memory::Hangs | Memory::Broken(_) => true,
        };
        is_of_this_kind && !matches!(self.ours, Ours::Answers { .. })
    }

    /// Where a program finds us.
    fn way_in(&self, path: &str) -> String {
        match self.taken_over {
            true => format!("programs that open {} get ours", self.path),
            false => format!("programs use {path}, or `vidcompat run PROGRAM`"),
        }
    }

    pub(super) fn finding(&self) -> Finding {
        let new =
            |level, what: String| Finding::new(level, self.path.clone(), format!("{}: {what}", self.name));
        let serve = match (self.can_be_served, self.daemon_runs) {
            (true, false) => {
                "it is served when vidcompatd runs, unless the configuration says otherwise".to_owned()
            }
            (true, true) => format!(
                "serve it: `[[device]]` and below it `path = \"{path}\"` in /etc/vidcompat/vidcompat.toml, then `systemctl \
                 reload vidcompatd`; or `vidcompatd --device {path}`",
                path = self.path
            ),
            (false, _) => "it has no number below 64, and cannot have a node beside it".to_owned(),
        };
        match (&self.memory, &self.ours) {
            // Whatever the device has: who opens ours needs an answer.
            (_, Ours::Fails { path, why }) => new(Level::Problem, format!("our node {path} {why}"))
                // A restart keeps the node as it is.
                .advise(
                    "`systemctl stop vidcompatd; systemctl start vidcompatd`, and `vidcompat bug-report`",
                ),
            (_, Ours::Denied { path, owner, advice }) => new(
                Level::Problem,
                format!("this user may not open our node {path} ({owner})"),
            )
            .advise(advice.clone()),
            (Memory::NoBuffers, _) => new(
                Level::Ok,
                "has no buffers, so pointers are no question".to_owned(),
            ),
            (Memory::Denied { owner, advice }, Ours::None | Ours::Other { .. }) => {
                new(Level::Problem, format!("this user may not open it ({owner})")).advise(advice.clone())
            }
            (Memory::Hangs | Memory::Broken(_), _) => {
                let why = match &self.memory {
                    Memory::Broken(why) => why.as_str(),
                    _ => "it does not answer",
                };
                new(Level::Problem, why.to_owned())
                    .advise("the kernel's log tells more (`dmesg`); plug it again, or load its module again")
            }
            (Memory::Busy | Memory::Denied { .. }, Ours::Answers { path }) => {
                let why = match self.memory {
                    Memory::Busy => format!("in use by {}, so its own memory was not looked at", self.users),
                    _ => "the real node is not this user's".to_owned(),
                };
                new(
                    Level::Ok,
                    format!("{why}; our node answers: {}", self.way_in(path)),
                )
            }
            (Memory::Busy, _) => new(Level::Warning, format!("in use by {}, left alone", self.users))
                .advise("look again when it is free"),
            (Memory::Known { userptr, .. }, Ours::Answers { path }) => {
                let without = match userptr {
                    true => {
                        "USERPTR works there too, but not with pointers into framebuffers or other devices' buffers"
                    }
                    false => "USERPTR there is EINVAL",
                };
                new(
                    Level::Ok,
                    format!("{}; {without}: {}", self.memories(), self.way_in(path)),
                )
            }
            (Memory::Known { userptr: true, .. }, ours) => {
                let served = match ours {
                    Ours::Other { path, what } => format!(", and cannot be served while {path} is {what}"),
                    _ => ", and is not served".to_owned(),
                };
                new(
                    Level::Ok,
                    format!(
                        "{}; programs with USERPTR work, but not with pointers into framebuffers or other devices' \
                         buffers{served}",
                        self.memories()
                    ),
                )
            }
            (Memory::Known { userptr: false, .. }, Ours::Other { path, what }) => new(
                Level::Problem,
                format!(
                    "{}; USERPTR is EINVAL, and {path}, where our node would be, is {what}",
                    self.memories()
                ),
            )
            .advise("give that device another number, or let ours take the real one's name (takeover)"),
            (Memory::Known { userptr: false, .. }, _) => new(
                Level::Problem,
                format!(
                    "{}; programs that insist on USERPTR get EINVAL from REQBUFS",
                    self.memories()
                ),
            )
            .advise(serve),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Level;
    use super::{Facts, Memory, Ours};

    pub const fn has(userptr: bool) -> Memory {
        Memory::Known {
            userptr,
            mmap: true,
            dmabuf: true,
            vb2: true,
        }
    }

    pub fn facts(memory: Memory, ours: Ours) -> Facts {
        Facts {
            path: "/dev/video1".to_owned(),
            name: "vivid".to_owned(),
            memory,
            importer: Some("contiguous queue".to_owned()),
            users: "process 7 (cheese)".to_owned(),
            ours,
            taken_over: false,
            can_be_served: true,
            daemon_runs: true,
        }
    }

    pub fn path() -> String {
        "/dev/video65".to_owned()
    }

    #[test]
    fn a_device_without_userptr_needs_us_and_one_with_it_does_not() {
        let finding = facts(has(false), Ours::None).finding();
        assert_eq!(finding.level, Level::Problem);
        assert!(
            finding
                .what
                .contains("MMAP, DMABUF; contiguous queue; programs that insist on USERPTR get EINVAL")
        );
        assert!(
            finding
                .advice
                .expect("what to do")
                .contains("--device /dev/video1")
        );
        let alone = Facts {
            daemon_runs: false,
            ..facts(has(false), Ours::None)
        };
        let advice = alone.finding().advice.expect("what to do");
        assert!(
            advice.starts_with("it is served when vidcompatd runs"),
            "{advice}"
        );
        assert!(facts(has(false), Ours::None).needs_us() && !facts(has(true), Ours::None).needs_us());
        assert_eq!(facts(has(true), Ours::None).finding().level, Level::Ok);
        let served = facts(has(false), Ours::Answers { path: path() });
        let finding = served.finding();
        assert_eq!(finding.level, Level::Ok);
        assert!(
            finding
                .what
                .ends_with("programs use /dev/video65, or `vidcompat run PROGRAM`"),
            "{finding:?}"
        );
        let over = Facts {
            taken_over: true,
            ..served
        };
        assert!(
            over.finding()
                .what
                .ends_with("programs that open /dev/video1 get ours")
        );
    }

    #[test]
    fn our_own_node_has_to_answer() {
        for memory in [has(true), has(false), Memory::Busy, Memory::NoBuffers] {
            let ours = Ours::Fails {
                path: path(),
                why: "does not answer".to_owned(),
            };
            assert_eq!(facts(memory, ours).finding().level, Level::Problem);
        }
        let other = Ours::Other {
            path: path(),
            what: "v4l2loopback's".to_owned(),
        };
        assert_eq!(facts(has(false), other.clone()).finding().level, Level::Problem);
        assert_eq!(facts(has(true), other).finding().level, Level::Ok);
    }

    #[test]
    fn what_could_not_be_looked_at_is_said() {
        let busy = facts(Memory::Busy, Ours::None).finding();
        assert_eq!(busy.level, Level::Warning);
        assert!(busy.what.contains("in use by process 7 (cheese), left alone"));
        assert_eq!(
            facts(Memory::Busy, Ours::Answers { path: path() })
                .finding()
                .level,
            Level::Ok
        );
        let denied = || Memory::Denied {
            owner: "group video, mode 660".to_owned(),
            advice: "`adduser USER video`".to_owned(),
        };
        assert_eq!(facts(denied(), Ours::None).finding().level, Level::Problem);
        // The real node of a device that was taken over is root's.
        assert_eq!(
            facts(denied(), Ours::Answers { path: path() }).finding().level,
            Level::Ok
        );
        assert_eq!(facts(Memory::Hangs, Ours::None).finding().level, Level::Problem);
        assert_eq!(facts(Memory::NoBuffers, Ours::None).finding().level, Level::Ok);
    }
}
