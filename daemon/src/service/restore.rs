//! What a daemon before us has left, and what we leave to the next: the channels of nodes, and what belongs to them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::served::Served;
use crate::cuse::{Channel, Kernel};
use crate::survive::{Inheritance, Kept, Store};

/// At an end that was asked for, what is in the store stays there as it is, open files and unanswered requests with it, for
/// the next daemon; where there will be none, whoever keeps it ends it. The rest comes back, to be ended; all of it where
/// whoever kept it has ended.
pub(super) fn leave_kept(served: Vec<Served>, store: &Store) -> Vec<Served> {
    if !store.still_keeps() {
        return served;
    }
    let (kept, ends): (Vec<_>, Vec<_>) = served.into_iter().partition(|served| served.kept.is_some());
    std::mem::forget(kept);
    ends
}

/// So many open files are in there.
pub(super) fn files_in(inheritance: &Inheritance) -> usize {
    inheritance.of_kind("record").count()
}

/// What was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GivenUp {
    /// A node was among it, which has ended.
    pub(super) nodes: bool,
    /// Open files.
    pub(super) files: usize,
}

/// The store, and what was in it when we began.
#[derive(Debug)]
pub(super) struct Survival {
    store: Arc<Store>,
    inheritance: Mutex<Inheritance>,
}

/// The name of a node's channel in the store.
fn name_of(node: &str) -> String {
    format!("channel.{node}")
}

impl Survival {
    /// What whoever started us keeps, and has kept. To be called once.
    pub(super) fn of_starter() -> Self {
        Self {
            store: Store::of_starter(),
            inheritance: Mutex::new(Inheritance::take()),
        }
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(super) fn inheritance(&self) -> MutexGuard<'_, Inheritance> {
        self.inheritance.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is there a node of a daemon before us that goes on?
    pub(super) fn is_heir(&self) -> bool {
        !self.nodes().is_empty()
    }

    /// Is there a channel of the node of ours that is called `node`? Then the node is there, and it is ours.
    pub(super) fn has_channel(&self, node: &str) -> bool {
        self.inheritance().get(&name_of(node)).is_some()
    }

    /// The channel of `node`, if the kernel still serves it.
    pub(super) fn channel(&self, node: &str) -> Option<(Arc<Channel>, Kept)> {
        let name = name_of(node);
        let file = self.inheritance().remove(&name)?;
        let kept = self.store.kept(&name);
        let channel = Channel::over(file);
        if channel.is_connected() {
            return Some((channel, kept));
        }
        tracing::warn!(
            node,
            "the kernel has ended a node that was to go on; it is made anew"
        );
        None
    }

    /// From now on the node outlives us, if the kernel can send requests again. Else nothing of it may: whoever waits is to
    /// be told at our end that we have ended.
    pub(super) fn keep(&self, node: &str, channel: &Channel, kernel: Kernel) -> Option<Kept> {
        if !self.store.keeps() || !kernel.resends() {
            return None;
        }
        let put = self.store.put(&name_of(node), channel.descriptor());
        put.inspect_err(|error| {
            tracing::warn!(node, %error, "a node cannot be put into the fd store: it will not outlive this daemon");
        })
        .ok()
    }

    /// The nodes of ours whose channels are there.
    pub(super) fn nodes(&self) -> Vec<String> {
        let inheritance = self.inheritance();
        let names = inheritance.of_kind("channel");
        names
            .filter_map(|name| Some(name.split_once('.')?.1.to_owned()))
            .collect()
    }

    /// What else a daemon before us has left of `node`.
    pub(super) fn of_node(&self, node: &str) -> Inheritance {
        self.inheritance().split_off(node)
    }

    /// What nobody has taken so far nobody needs, but for what belongs to the nodes in `stay`.
    pub(super) fn give_up(&self, stay: &[String]) -> GivenUp {
        let nodes = self.nodes().iter().any(|node| !stay.contains(node));
        let mut inheritance = self.inheritance();
        let stays = |name: &&str| {
            let node = name.split('.').nth(1);
            node.is_some_and(|node| stay.iter().any(|stays| stays == node))
        };
        let names: Vec<String> = inheritance
            .beginning("")
            .filter(stays)
            .map(str::to_owned)
            .collect();
        let kept: Inheritance = names
            .into_iter()
            .filter_map(|name| inheritance.remove(&name).map(|file| (name, file)))
            .collect();
        let given_up = std::mem::replace(&mut *inheritance, kept);
        let files = files_in(&given_up);
        given_up.give_up(&self.store);
        GivenUp { nodes, files }
    }
}

#[cfg(test)]
mod tests {
    use super::{GivenUp, Inheritance, Mutex, Store, Survival};
    use std::fs::File;

    #[test]
    fn what_belongs_to_a_node_that_stays_is_kept_and_nothing_else() {
        let names = [
            "channel.video0",
            "device.video0.7",
            "buffer.video0.7.3",
            "channel.video64",
            "record.video64.1",
            "record.video64.2",
            "shim-socket",
        ];
        let file = || File::open("/dev/null").expect("a null device").into();
        let inheritance: Inheritance = names.iter().map(|name| ((*name).to_owned(), file())).collect();
        let survival = Survival {
            store: Store::none(),
            inheritance: Mutex::new(inheritance),
        };
        let left = || -> Vec<String> {
            let inheritance = survival.inheritance();
            inheritance.beginning("").map(str::to_owned).collect()
        };
        let stay = ["video0".to_owned()];
        let ended = GivenUp {
            nodes: true,
            files: 2,
        };
        assert_eq!(
            survival.give_up(&stay),
            ended,
            "video64 has ended, with two files"
        );
        assert_eq!(left(), ["buffer.video0.7.3", "channel.video0", "device.video0.7"]);
        let nothing = GivenUp {
            nodes: false,
            files: 0,
        };
        assert_eq!(survival.give_up(&stay), nothing);
        assert!(survival.give_up(&[]).nodes);
        assert!(left().is_empty());
    }
}
