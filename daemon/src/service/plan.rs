//! What is to be served, and how that differs from what is served. Nothing is done here.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::config::{Choice, Config, Kinship, Way};
use crate::devices::{FbSource, Found, Identity, Questions, discover, names_of};

/// A real node of this machine that answers.
#[derive(Clone, Debug)]
pub(super) struct Present {
    pub(super) found: Found,
    pub(super) driver: String,
    pub(super) card: String,
}

impl Kinship for Present {
    fn path(&self) -> &Path {
        &self.found.path
    }

    fn is_hardware(&self) -> bool {
        self.found.is_hardware
    }

    fn driver(&self) -> &str {
        &self.driver
    }

    fn card(&self) -> &str {
        &self.card
    }
}

/// Why a device is not served that has not answered so far.
const HANGS: &str = "its driver hangs in open or QUERYCAP; it is served as soon as that answers, and the other devices go on; to \
                     have it sooner, unplug it or load its driver's module again";

/// Driver and card.
type Names = (String, String);

/// The real nodes of this machine: each is opened once, when it is new.
#[derive(Debug)]
pub(super) struct Machine {
    names: HashMap<Identity, Names>,
    /// Those that are being opened. A driver that hangs there hangs alone.
    asked: Questions<Identity, io::Result<Names>>,
    /// Those that did not say who they are when they were asked last, and why. They are asked again, and not waited for.
    bad: HashMap<Identity, String>,
}

/// What a look at the machine has shown.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) present: Vec<Present>,
    /// udev is still about these.
    pub(super) unsettled: usize,
    /// These cannot be served, and why.
    pub(super) silent: Vec<(Found, String)>,
}

impl Machine {
    /// Nothing was looked at. `answered` is told when a device answers that has taken its time.
    pub(super) fn new(answered: Arc<Notify>) -> Self {
        Self {
            names: HashMap::new(),
            asked: Questions::new(answered),
            bad: HashMap::new(),
        }
    }

    /// What there is now. With `after_udev`, a new device counts when udev has done with it. New devices may take `patience`,
    /// all together, to say who they are.
    ///
    /// # Errors
    /// sysfs cannot be read.
    pub(super) fn look(&mut self, after_udev: bool, patience: Duration) -> io::Result<Look> {
        Ok(self.look_at(discover()?, after_udev, patience, names_of))
    }

    fn look_at(
        &mut self,
        all: Vec<Found>,
        after_udev: bool,
        patience: Duration,
        names_of: fn(&Path) -> io::Result<Names>,
    ) -> Look {
        let is_there = |identity: &Identity| all.iter().any(|found| found.identity == *identity);
        self.names.retain(|identity, _| is_there(identity));
        self.asked.retain(is_there);
        self.bad.retain(|identity, _| is_there(identity));
        let mut look = Look::default();
        let begun = Instant::now();
        let mut answering = Vec::new();
        for found in all {
            let is_known = self.names.contains_key(&found.identity);
            if after_udev && !is_known && !found.is_settled() {
                look.unsettled += 1;
                continue;
            }
            let Some(real) = found.real() else {
                let why = "the kernel has the device, but nobody has made its node".to_owned();
                look.silent.push((found, why));
                continue;
            };
            let ask = move || names_of(&real);
            if !is_known {
                self.asked.begin(found.identity.clone(), ask);
            }
            // Whoever was asked before has had that time.
            let is_new = !self.bad.contains_key(&found.identity);
            answering.push((found, if is_new { begun + patience } else { begun }));
        }
        for (found, until) in answering {
            let why = match self.names(&found, until) {
                Some(Ok((driver, card))) => {
                    self.bad.remove(&found.identity);
                    look.present.push(Present { found, driver, card });
                    continue;
                }
                Some(Err(error)) => format!("it does not answer ({error})"),
                // One that has failed before is only being asked again.
                None => self.bad.get(&found.identity).map_or(HANGS, |why| why).to_owned(),
            };
            self.bad.insert(found.identity.clone(), why.clone());
            look.silent.push((found, why));
        }
        look
    }

    fn names(&mut self, found: &Found, until: Instant) -> Option<io::Result<Names>> {
        if let Some(names) = self.names.get(&found.identity) {
            return Some(Ok(names.clone()));
        }
        let answer = self.asked.answer(&found.identity, until)?;
        if let Ok(names) = &answer {
            self.names.insert(found.identity.clone(), names.clone());
        }
        Some(answer)
    }
}

/// What a node of ours is for: two with equal keys are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Device(Identity),
    Framebuffer(FbSource),
}

impl Key {
    /// Can there not be both? A graphics card shows one.
    pub(super) fn excludes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Framebuffer(one), Self::Framebuffer(other)) if one.card().is_some() => {
                one.card() == other.card()
            }
            _ => self == other,
        }
    }
}

/// How it is served: where this differs, the node must be made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct How {
    pub(super) way: Way,
    pub(super) choice: Choice,
}

/// A node that there is to be.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) key: Key,
    /// Of a device.
    pub(super) present: Option<Present>,
    pub(super) how: How,
}

/// All that there is to be, of what is there.
pub(super) fn wanted(config: &Config, present: &[Present]) -> Vec<Wanted> {
    let device = |present: &Present| {
        let decision = config.decide(present)?;
        (decision.way != Way::Off).then(|| Wanted {
            key: Key::Device(present.found.identity.clone()),
            present: Some(present.clone()),
            how: How {
                way: decision.way,
                choice: decision.choice,
            },
        })
    };
    let framebuffers = config.framebuffers.iter().map(|source| Wanted {
        key: Key::Framebuffer(source.value.clone()),
        present: None,
        how: How {
            way: Way::Side,
            choice: Choice {
                adopt: false,
                dma_heap: false,
            },
        },
    });
    framebuffers.chain(present.iter().filter_map(device)).collect()
}

/// A node that there is.
#[derive(Clone, Debug)]
pub(super) struct Have {
    pub(super) key: Key,
    pub(super) how: How,
    pub(super) is_open: bool,
}

/// What must be done so that there is what is wanted: indices.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// Of those that there are: nobody is to find these any more; who has one open keeps it.
    pub(super) hide: Vec<usize>,
    /// Of those that there are: these end, to be made anew.
    pub(super) replace: Vec<usize>,
    /// Of those that there are: these are to be made anew when nobody has them open.
    pub(super) wait: Vec<usize>,
    /// Of those that are wanted.
    pub(super) make: Vec<usize>,
}

pub(super) fn difference(wanted: &[Wanted], have: &[Have]) -> Difference {
    let mut difference = Difference::default();
    let mut left: Vec<usize> = (0..wanted.len()).collect();
    for (at, node) in have.iter().enumerate() {
        let same = left.iter().position(|index| wanted[*index].key == node.key);
        let Some(same) = same else {
            difference.hide.push(at);
            continue;
        };
        let index = left.remove(same);
        if wanted[index].how == node.how {
            continue;
        }
        if node.is_open {
            difference.wait.push(at);
        } else {
            difference.replace.push(at);
            difference.make.push(index);
        }
    }
    difference.make.extend(left);
    difference.make.sort_unstable();
    difference
}

#[cfg(test)]
mod tests {
    use super::{Difference, Have, How, Key, Machine, Names, Wanted, difference};
    use crate::config::{Choice, Way};
    use crate::devices::Found;
    use std::io;
    use std::path::Path;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};
    use tokio::runtime::Builder;
    use tokio::sync::Notify;
    use tokio::time::timeout;

    const HOW: How = How {
        way: Way::Side,
        choice: Choice {
            adopt: true,
            dma_heap: true,
        },
    };
    const OTHER: How = How {
        way: Way::Takeover,
        ..HOW
    };

    fn key(name: &str) -> Key {
        Key::Framebuffer(name.parse().expect("a source"))
    }

    fn wanted(nodes: &[(&str, How)]) -> Vec<Wanted> {
        let wanted = nodes.iter().map(|(name, how)| Wanted {
            key: key(name),
            present: None,
            how: *how,
        });
        wanted.collect()
    }

    fn have(nodes: &[(&str, How, bool)]) -> Vec<Have> {
        let have = nodes.iter().map(|(name, how, is_open)| Have {
            key: key(name),
            how: *how,
            is_open: *is_open,
        });
        have.collect()
    }

    static BROKEN: Mutex<()> = Mutex::new(());

    /// `/dev/zero` is broken while somebody has [`BROKEN`].
    fn names_of(path: &Path) -> io::Result<Names> {
        match path.to_str() {
            Some("/dev/null") => Ok(("null".to_owned(), "sound".to_owned())),
            Some("/dev/full") => Err(io::ErrorKind::NotConnected.into()),
            _ => {
                drop(BROKEN.lock());
                Ok(("zero".to_owned(), "late".to_owned()))
            }
        }
    }

    #[test]
    fn one_device_that_hangs_delays_nobody_but_itself() {
        const SHORT: Duration = Duration::from_secs(2);
        const LONG: Duration = Duration::from_secs(100);
        let mut asked = 0;
        let broken = BROKEN.lock().expect("a test");
        let answered = Arc::new(Notify::new());
        let mut machine = Machine::new(Arc::clone(&answered));
        let all = vec![
            Found::fake("/dev/zero", (1, 5), 1),
            Found::fake("/dev/null", (1, 3), 2),
            Found::fake("/dev/full", (1, 7), 3),
        ];
        let begun = Instant::now();
        // Those that have failed are asked again, and not waited for.
        for patience in [SHORT, LONG, LONG] {
            let look = machine.look_at(all.clone(), false, patience, names_of);
            let present: Vec<_> = look.present.iter().map(|present| &*present.driver).collect();
            assert_eq!(present, ["null"]);
            let silent: Vec<_> = look
                .silent
                .iter()
                .map(|(found, why)| (found.name(), &**why))
                .collect();
            assert_eq!((silent[0].0, silent[1].0), ("zero", "full"));
            assert!(
                silent[0].1.contains("hangs") && silent[1].1.contains("does not answer"),
                "{silent:?}"
            );
        }
        assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
        let runtime = Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let told = |limit| runtime.block_on(async { timeout(limit, answered.notified()).await.is_ok() });
        // At the last look the one that fails was asked again: what it says is looked at, and does not lead to the next
        // question by itself.
        while told(LONG / 100) {
            let look = machine.look_at(all.clone(), false, LONG, names_of);
            assert_eq!(look.silent.len(), 2);
            asked += 1;
            assert!(asked < 3, "each look leads to the next");
        }
        drop(broken);
        assert!(told(LONG), "a late answer is told of");
        let look = machine.look_at(all, false, LONG, names_of);
        let present: Vec<_> = look.present.iter().map(|present| &*present.card).collect();
        assert_eq!(present, ["late", "sound"]);
    }

    #[test]
    fn what_is_as_it_is_wanted_is_left_alone_open_or_not() {
        let wanted = wanted(&[("/dev/a", HOW), ("/dev/b", HOW)]);
        let have = have(&[("/dev/b", HOW, true), ("/dev/a", HOW, false)]);
        assert_eq!(difference(&wanted, &have), Difference::default());
    }

    #[test]
    fn what_is_new_is_made_and_what_is_gone_is_hidden() {
        let wanted = wanted(&[("/dev/a", HOW), ("/dev/b", HOW)]);
        let have = have(&[
            ("/dev/c", HOW, true),
            ("/dev/b", HOW, true),
            ("/dev/d", HOW, false),
        ]);
        let expected = Difference {
            hide: vec![0, 2],
            make: vec![0],
            ..Difference::default()
        };
        assert_eq!(difference(&wanted, &have), expected);
    }

    #[test]
    fn what_is_to_be_otherwise_waits_until_nobody_has_it_open() {
        let wanted = wanted(&[("/dev/a", OTHER)]);
        let open = difference(&wanted, &have(&[("/dev/a", HOW, true)]));
        assert_eq!((open.wait, open.make, open.hide), (vec![0], vec![], vec![]));
        let closed = difference(&wanted, &have(&[("/dev/a", HOW, false)]));
        assert_eq!(
            (closed.replace, closed.make, closed.hide),
            (vec![0], vec![0], vec![])
        );
    }

    #[test]
    fn a_card_shows_one_framebuffer_of_whatever_size() {
        let card = key("kms:/dev/dri/card0");
        assert!(card.excludes(&key("kms:/dev/dri/card0,depth=16")));
        assert!(!card.excludes(&key("kms:/dev/dri/card1")) && !card.excludes(&key("memory:8x8x8")));
        let memory = key("memory:8x8x8");
        assert!(memory.excludes(&key("memory:8x8x8")) && !memory.excludes(&key("memory:9x8x8")));
    }

    #[test]
    fn the_same_thing_twice_is_two_nodes() {
        let both = wanted(&[("memory:8x8x8", HOW), ("memory:8x8x8", HOW)]);
        let one = have(&[("memory:8x8x8", HOW, true)]);
        assert_eq!(difference(&both, &one).make, [1]);
        let three = have(&[("memory:8x8x8", HOW, true); 3]);
        assert_eq!(difference(&both, &three).hide, [2]);
    }
}
