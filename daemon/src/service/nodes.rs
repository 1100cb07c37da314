//! The nodes that are served: they are made and ended so that there is what is wanted, and what nobody has asked to be changed
//! is not touched.
//!
//! A device that goes takes its node's name along at once, as the real one's goes; who has the node open keeps it and is
//! answered what the driver says, until the last file is closed. Should another device with the same name come before that, the
//! old node is ended first: CUSE knows no second device of a name. One that is wanted again itself waits for its files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::observed::Observed;
use super::plan::{Have, How, Key, Machine, Wanted, difference, wanted};
use super::served::{Making, Served};
use super::{PATIENCE, ServiceError, end, framebuffers};
use crate::backend::framebuffer::Framebuffer;
use crate::config::{Config, Way};
use crate::devices::{FbNode, Node, Questions, SideNode, carry, give_back_all, our_name};
use crate::survive::Store;

/// A node that ends by itself is made anew unless it has done so this many times within this time.
const ENDS: usize = 3;
const WITHIN: Duration = Duration::from_secs(60);

/// Nodes from a daemon before us are kept this long where their devices do not answer at once; then whoever waits is told.
const SILENCE: Duration = Duration::from_secs(20);

/// New devices may take so long, all together, to say who they are; those that take longer are served when they have done so.
const PROMPT: Duration = Duration::from_secs(1);

/// See [`Nodes::pace`].
const SOON: Duration = Duration::from_millis(100);
const SHORTLY: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(30);

struct Entry {
    key: Key,
    how: How,
    served: Served,
    /// Of a framebuffer.
    framebuffer: Option<FbNode>,
}

/// When nodes have ended by themselves, by what they were for: what is plugged in again is something else.
#[derive(Debug, Default)]
struct Ends(Vec<(Key, Vec<Instant>)>);

impl Ends {
    /// One has ended now. `true`: it is not made anew any more.
    fn add(&mut self, key: &Key, now: Instant) -> bool {
        let at = self.0.iter().position(|(known, _)| known == key);
        let at = at.unwrap_or_else(|| {
            self.0.push((key.clone(), Vec::new()));
            self.0.len() - 1
        });
        let ends = &mut self.0[at].1;
        ends.retain(|ended| now.saturating_duration_since(*ended) < WITHIN);
        ends.push(now);
        ends.len() >= ENDS
    }

    fn are_enough(&self, key: &Key) -> bool {
        let mut all = self.0.iter();
        all.any(|(known, ends)| known == key && ends.len() >= ENDS)
    }

    /// Forgets what is wanted no more.
    fn retain(&mut self, wanted: &[Wanted]) {
        self.0
            .retain(|(key, _)| wanted.iter().any(|wanted| wanted.key == *key));
    }
}

type Opened = Result<Arc<dyn Framebuffer>, ServiceError>;

/// See the module.
pub(super) struct Nodes {
    making: Making,
    machine: Machine,
    /// Framebuffers that are being opened, by their names.
    opening: Questions<String, Opened>,
    /// There is something new to look at.
    roused: Arc<Notify>,
    entries: Vec<Entry>,
    /// Without a name: for those who have them open.
    departed: Vec<Entry>,
    ends: Ends,
    /// What the operator has been told of a device that is not served: once.
    told: HashMap<String, String>,
    /// Devices that did not answer when they were looked at last.
    silent: HashMap<String, String>,
    /// There is something to look after soon, since then.
    restless: Option<Instant>,
    /// Nothing was looked at so far.
    is_first: bool,
    begun: Instant,
    shown: Arc<Observed>,
}

impl Nodes {
    pub(super) fn new(making: Making, shown: Arc<Observed>) -> Self {
        let roused = Arc::clone(&making.roused);
        Self {
            making,
            machine: Machine::new(Arc::clone(&roused)),
            opening: Questions::new(Arc::clone(&roused)),
            roused,
            is_first: true,
            entries: Vec::new(),
            departed: Vec::new(),
            ends: Ends::default(),
            told: HashMap::new(),
            silent: HashMap::new(),
            restless: None,
            begun: Instant::now(),
            shown,
        }
    }

    /// Makes and ends nodes so that there is what `config` wants of what is there.
    ///
    /// # Errors
    /// The first thing that went wrong; everything else was done all the same.
    pub(super) fn compare(&mut self, config: &Config) -> Result<(), ServiceError> {
        // What there is when we begin is served when we say that we are ready; but nobody's clients wait meanwhile.
        let patience = match std::mem::replace(&mut self.is_first, false) && !self.making.survival.is_heir() {
            true => PATIENCE,
            false => PROMPT,
        };
        let look = self.machine.look(!config.strict, patience);
        let look = look.map_err(ServiceError::System)?;
        let wanted = wanted(config, &look.present);
        self.ends.retain(&wanted);
        self.opening
            .retain(|name| wanted.iter().any(|wanted| name_of(wanted) == *name));
        let difference = difference(&wanted, &self.have());
        let mut troubles = HashMap::new();
        let mut silent = HashMap::new();
        let mut stay = Vec::new();
        for (found, why) in look.silent {
            if self.begun.elapsed() < SILENCE {
                // Of its nodes of ours, beside it or in its place, one may be there from a daemon before us.
                stay.extend(our_name(&found));
                stay.push(found.name().to_owned());
            }
            silent.insert(found.path.display().to_string(), why);
        }
        let waiting: Vec<u64> = difference
            .wait
            .iter()
            .map(|at| self.entries[*at].served.id)
            .collect();
        self.take_out(&difference.hide, &difference.replace);
        let mut first = Ok(());
        for index in &difference.make {
            let wanted = &wanted[*index];
            let name = name_of(wanted);
            if self.ends.are_enough(&wanted.key) {
                continue;
            }
            if self.has_departed(&wanted.key) {
                let why = "programs still have its node of before open: it has a node again when they have closed that";
                troubles.insert(name, why.to_owned());
                continue;
            }
            match self.make(wanted) {
                Ok(entry) => {
                    tracing::info!(
                        device = entry.served.name, node = %entry.served.node.path().display(), "serving"
                    );
                    self.entries.push(entry);
                }
                Err(error) => {
                    troubles.insert(name, error.to_string());
                    first = first.and(Err(error));
                }
            }
        }
        // One that comes or goes in this very moment is silent too: it is told of when it still is at the next look.
        let new = silent.keys().any(|name| !self.silent.contains_key(name));
        let seen = silent.iter().filter(|(name, _)| self.silent.contains_key(*name));
        troubles.extend(seen.map(|(name, why)| (name.clone(), why.clone())));
        self.silent = silent;
        self.restless = (new || look.unsettled > 0).then(|| self.restless.unwrap_or_else(Instant::now));
        self.await_last_files(&waiting);
        if look.unsettled == 0 && !new {
            let given_up = self.making.survival.give_up(&stay);
            let why = "its device was gone, did not answer, or is not served any more";
            self.making.chronicle.lost(given_up.files, why);
            if given_up.nodes {
                // Names that a daemon before us had taken, which are not to be ours any more; those that are have our lock.
                drop(give_back_all(&stay, false));
            }
        }
        self.tell(troubles);
        self.carry_access();
        self.shown.show(self.entries.iter().map(|entry| &entry.served));
        first
    }

    fn have(&self) -> Vec<Have> {
        let have = self.entries.iter().map(|entry| Have {
            key: entry.key.clone(),
            how: entry.how,
            is_open: entry.served.front.open_files() > 0,
        });
        have.collect()
    }

    /// Takes out those that are to be hidden, and ends those that are to be replaced.
    fn take_out(&mut self, hide: &[usize], replace: &[usize]) {
        let mut ending = Vec::new();
        let entries = std::mem::take(&mut self.entries);
        for (at, mut entry) in entries.into_iter().enumerate() {
            if hide.contains(&at) {
                // The name is the real one's again, if that is still there; who has ours open keeps it.
                drop(entry.served.takeover.take());
                entry.served.node.hide();
                tracing::info!(
                    device = entry.served.name, node = %entry.served.node.path().display(),
                    files = entry.served.front.open_files(), "serving no more"
                );
                self.departed.push(entry);
            } else if replace.contains(&at) {
                ending.push(entry.served);
            } else {
                self.entries.push(entry);
            }
        }
        end(ending);
        self.reap();
    }

    /// Ends the nodes without a name that nobody has open any more.
    pub(super) fn reap(&mut self) {
        let departed = std::mem::take(&mut self.departed);
        let (open, closed): (Vec<_>, Vec<_>) = departed
            .into_iter()
            .partition(|entry| entry.served.front.open_files() > 0);
        self.departed = open;
        end(closed.into_iter().map(|entry| entry.served).collect());
    }

    /// It is to be looked again when the last file of one of these nodes is closed, or of one without a name.
    fn await_last_files(&self, waiting: &[u64]) {
        for Entry { served, .. } in &self.entries {
            served.closing.wait(waiting.contains(&served.id));
        }
        for Entry { served, .. } in &self.departed {
            served.closing.wait(true);
        }
        let awaited = self
            .entries
            .iter()
            .filter(|entry| waiting.contains(&entry.served.id));
        // What was closed before we waited for it.
        if awaited
            .chain(&self.departed)
            .any(|entry| entry.served.front.open_files() == 0)
        {
            self.roused.notify_one();
        }
    }

    /// Is there a node without a name of what `key` is about, which somebody streams from?
    fn has_departed(&self, key: &Key) -> bool {
        let mut departed = self.departed.iter();
        departed.any(|entry| entry.key.excludes(key) && entry.served.front.open_files() > 0)
    }

    fn make(&mut self, wanted: &Wanted) -> Result<Entry, ServiceError> {
        let (served, framebuffer) = match (&wanted.present, &wanted.key) {
            (Some(present), _) => {
                let names = (present.driver.clone(), present.card.clone());
                let is_ours = |node: &Node| self.is_ours_or_clear(node);
                let side = match wanted.how.way {
                    Way::Takeover => SideNode::in_place(&present.found, names, is_ours)?,
                    Way::Side | Way::Off => SideNode::beside(&present.found, names, is_ours)?,
                };
                (self.making.video(side, wanted.how.choice)?, None)
            }
            (None, Key::Framebuffer(source)) => {
                let others: Vec<FbNode> = self
                    .entries
                    .iter()
                    // Their numbers are taken, although nobody finds them.
                    .chain(&self.departed)
                    .filter_map(|entry| entry.framebuffer.clone())
                    .collect();
                let is_ours = |node: &str| self.making.survival.has_channel(node);
                let framebuffer = FbNode::of(source, &others, &is_ours)?;
                // What is wrong with it is said before there is a node.
                let opened = self.opened(source.name(), &framebuffer)?;
                let served = self.making.framebuffer(framebuffer.clone(), opened)?;
                (served, Some(framebuffer))
            }
            (None, Key::Device(_)) => return Err(ServiceError::System(std::io::ErrorKind::NotFound.into())),
        };
        Ok(Entry {
            key: wanted.key.clone(),
            how: wanted.how,
            served,
            framebuffer,
        })
    }

    /// What `framebuffer` shows, which the configuration calls `name`.
    fn opened(&mut self, name: String, framebuffer: &FbNode) -> Opened {
        let (source, options) = (framebuffer.source.clone(), self.making.options.clone());
        let ask = move || framebuffers::make(&source, &options);
        // One that was asked before has had its time.
        let patience = match self.opening.begin(name.clone(), ask) {
            true => PROMPT,
            false => Duration::ZERO,
        };
        let opened = self.opening.answer(&name, Instant::now() + patience);
        opened.unwrap_or_else(|| Err(ServiceError::Hangs(name)))
    }

    /// Is `node` there from a daemon before us, to go on? Else there is room for it.
    fn is_ours_or_clear(&mut self, node: &Node) -> bool {
        let is_ours = self.making.survival.has_channel(&node.spec().name);
        if !is_ours {
            self.clear(node);
        }
        is_ours
    }

    /// Makes room for `node`: CUSE knows no second device of a name or a number.
    fn clear(&mut self, node: &Node) {
        let departed = std::mem::take(&mut self.departed);
        let (same, others): (Vec<_>, Vec<_>) = departed
            .into_iter()
            .partition(|entry| entry.served.node.is_in_the_way_of(node));
        self.departed = others;
        for Entry { served, .. } in &same {
            tracing::warn!(
                node = %node.path().display(), files = served.front.open_files(),
                "another device has come with this name: the files that are still open of the one before are ended"
            );
        }
        end(same.into_iter().map(|entry| entry.served).collect());
    }

    /// Says what is wrong with devices, of each the same thing once.
    fn tell(&mut self, troubles: HashMap<String, String>) {
        for (name, why) in &troubles {
            if self.told.get(name) != Some(why) {
                tracing::warn!(device = name, "not served: {why}");
            }
        }
        self.told = troubles;
    }

    /// Whoever may open a real node may open ours.
    fn carry_access(&self) {
        for Entry { served, .. } in &self.entries {
            let Some(like) = served.node.like() else { continue };
            let ours = served.node.path();
            // Where ours has the name, it is ours that logind gives to whoever has the screen.
            let carried = match served.takeover {
                Some(_) => carry(&ours, like),
                None => carry(like, &ours),
            };
            match carried {
                Ok(true) => {
                    tracing::info!(device = served.name, "owner, mode and access list have changed");
                }
                Ok(false) => {}
                // One that is gone goes with the next look.
                Err(error) => tracing::debug!(device = served.name, %error, "who may open it is not known"),
            }
        }
    }

    /// The nodes whose owner, mode and list are carried to others.
    pub(super) fn watched(&self) -> Vec<PathBuf> {
        let watched = |Entry { served, .. }: &Entry| match served.takeover {
            Some(_) => Some(served.node.path()),
            None => served.node.like().map(Path::to_owned),
        };
        self.entries.iter().filter_map(watched).collect()
    }

    /// The node with this id has ended.
    pub(super) fn ended(&mut self, id: u64) {
        // Of those without a name it was asked for, or they end with their device.
        let departed = std::mem::take(&mut self.departed);
        let (ended, others): (Vec<_>, Vec<_>) = departed.into_iter().partition(|entry| entry.served.id == id);
        self.departed = others;
        end(ended.into_iter().map(|entry| entry.served).collect());
        let Some(at) = self.entries.iter().position(|entry| entry.served.id == id) else {
            return;
        };
        let Entry { key, served, .. } = self.entries.remove(at);
        tracing::error!(
            device = served.name, node = %served.node.path().display(),
            "the node has ended although nobody asked for it; the real one is untouched"
        );
        if self.ends.add(&key, Instant::now()) {
            tracing::error!(
                device = served.name,
                "its node has ended {ENDS} times within {} seconds; it is not served any more until SIGHUP or until it is \
                 plugged in again",
                WITHIN.as_secs()
            );
        }
        end(vec![served]);
    }

    /// What was given up is tried again.
    pub(super) fn forgive(&mut self) {
        self.ends = Ends::default();
        self.told.clear();
    }

    /// Returns when there is something new to look at that only we know of.
    pub(super) async fn roused(&self) {
        self.roused.notified().await;
    }

    /// When it is to be looked again although nothing was heard.
    pub(super) fn pace(&self) -> Duration {
        let restless = self.restless.map(|since| since.elapsed());
        pace(restless, !self.told.is_empty())
    }

    /// What systemd shows of us.
    pub(super) fn status(&self) -> String {
        let served = self.entries.iter().map(|entry| &entry.served);
        let files: usize = served
            .chain(self.departed.iter().map(|entry| &entry.served))
            .map(|served| served.front.open_files())
            .sum();
        let devices = self.entries.len();
        let plural = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            _ => format!("{count} {what}s"),
        };
        let mut text = format!(
            "serving {}, {} open",
            plural(devices, "device"),
            plural(files, "file")
        );
        if !self.told.is_empty() {
            text.push_str(&format!("; {} not served, see the log", self.told.len()));
        }
        text
    }

    /// Where what outlives us is.
    pub(super) fn store(&self) -> &Arc<Store> {
        self.making.survival.store()
    }

    /// All of them, to be ended.
    pub(super) fn into_served(self) -> Vec<Served> {
        let entries = self.entries.into_iter().chain(self.departed);
        entries.map(|entry| entry.served).collect()
    }
}

/// Soon where udev is about a device, for so long, or where one has just come or gone; not that often where that lasts, or where a
/// device cannot be served.
fn pace(restless: Option<Duration>, troubled: bool) -> Duration {
    match restless {
        Some(so_long) if so_long < SHORTLY => SOON,
        Some(_) => AGAIN,
        None if troubled => AGAIN,
        None => IDLE,
    }
}

fn name_of(wanted: &Wanted) -> String {
    match (&wanted.present, &wanted.key) {
        (Some(present), _) => present.found.path.display().to_string(),
        (None, Key::Framebuffer(source)) => source.name(),
        (None, Key::Device(_)) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::{AGAIN, Ends, IDLE, SHORTLY, SOON, WITHIN, pace};
    use crate::config::{Choice, Way};
    use crate::devices::Found;
    use crate::service::plan::{How, Key, Wanted};
    use std::time::{Duration, Instant};

    #[test]
    fn nothing_is_looked_at_ten_times_a_second_for_long() {
        assert_eq!(pace(Some(Duration::ZERO), false), SOON);
        assert_eq!(pace(Some(SHORTLY), false), AGAIN);
        assert_eq!((pace(None, true), pace(None, false)), (AGAIN, IDLE));
    }

    #[test]
    fn what_ends_too_often_is_given_up_until_it_is_plugged_in_again() {
        let plugged = |inode| Key::Device(Found::fake("/dev/video0", (81, 0), inode).identity);
        let wanted = |key: &Key| Wanted {
            key: key.clone(),
            present: None,
            how: How {
                way: Way::Takeover,
                choice: Choice {
                    adopt: false,
                    dma_heap: false,
                },
            },
        };
        let (first, second) = (plugged(1), plugged(2));
        let (mut ends, begin) = (Ends::default(), Instant::now());
        let second_later = Duration::from_secs(1);
        assert!(!ends.add(&first, begin) && !ends.add(&first, begin + second_later));
        // The first two are long ago by then.
        assert!(!ends.add(&first, begin + 2 * WITHIN));
        assert!(!ends.add(&first, begin + 2 * WITHIN + second_later));
        assert!(!ends.are_enough(&first));
        assert!(ends.add(&first, begin + 2 * WITHIN + 2 * second_later));
        ends.retain(&[wanted(&first)]);
        assert!(ends.are_enough(&first) && !ends.are_enough(&second));
        // It comes back as another device, and nothing grows.
        ends.retain(&[wanted(&second)]);
        assert!(!ends.are_enough(&second) && ends.0.is_empty());
    }
}
