//! One served node: its channel, its front end, its threads.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Notify, mpsc, oneshot};

use super::chronicle::Chronicle;
use super::passing::{Closing, Passing};
use super::restore::{Survival, files_in};
use super::resuming::{Patience, Resuming};
use super::watchdog::{Crew, Watchdog};
use super::{CUSE, ServiceError};
use crate::backend::framebuffer::Framebuffer;
use crate::config::Choice;
use crate::cuse::{Channel, Handler, Kernel, initialize, serve};
use crate::devices::{FbNode, FbSource, Node, SideNode, Takeover};
use crate::frontend::fb;
use crate::frontend::shim::Shims;
use crate::frontend::video::VideoNode;
use crate::observe::model;
use crate::session::{Device, DeviceOptions, Shelf};
use crate::survive::{Inheritance, Kept, Store, Tries};

/// Idle threads that serve ready devices end after this.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// A node that programs can open.
pub(super) struct Served {
    /// No other node of this process has it.
    pub(super) id: u64,
    /// What it stands for, for people.
    pub(super) name: String,
    pub(super) node: Node,
    pub(super) front: Front,
    pub(super) server: JoinHandle<()>,
    /// Where ours has the real one's name.
    pub(super) takeover: Option<Takeover>,
    /// Driver and card, of a V4L2 node.
    names: Option<(String, String)>,
    /// Who waits for its last file.
    pub(super) closing: Arc<Closing>,
    /// Its channel, in the store that outlives us.
    pub(super) kept: Option<Kept>,
    /// Dropped to end the thread that waits for the device.
    _waiting: Option<oneshot::Sender<()>>,
}

/// Its front end.
#[derive(Clone)]
pub(super) enum Front {
    Video(Arc<VideoNode>),
    Framebuffer(Arc<fb::FbNode>),
}

impl Front {
    /// How many files are open.
    pub(super) fn open_files(&self) -> usize {
        match self {
            Self::Video(front) => front.open_files(),
            Self::Framebuffer(front) => front.open_files_count(),
        }
    }

    /// The node goes away: every call that waits ends.
    pub(super) fn shut_down(&self) {
        match self {
            Self::Video(front) => front.shut_down(),
            Self::Framebuffer(front) => front.shut_down(),
        }
    }
}

impl Served {
    /// A framebuffer, what status calls it and its node, and who knows the rest.
    pub(super) fn framebuffer(&self) -> Option<(model::Framebuffer, Arc<fb::FbNode>)> {
        let Front::Framebuffer(front) = &self.front else {
            return None;
        };
        let framebuffer = model::Framebuffer {
            source: self.name.clone(),
            node: self.node.path().display().to_string(),
            ..model::Framebuffer::default()
        };
        Some((framebuffer, Arc::clone(front)))
    }

    /// What status tells of a V4L2 node, and who knows its files.
    pub(super) fn device(&self) -> Option<(model::Device, Arc<VideoNode>)> {
        let Front::Video(front) = &self.front else {
            return None;
        };
        let (driver, card) = self.names.clone().unwrap_or_default();
        let device = model::Device {
            real: self.name.clone(),
            node: self.node.path().display().to_string(),
            driver,
            card,
            ..model::Device::default()
        };
        Some((device, Arc::clone(front)))
    }
}

/// What nodes are made with.
pub(super) struct Making {
    pub(super) options: DeviceOptions,
    pub(super) shims: Arc<Shims>,
    pub(super) survival: Survival,
    /// Who wants to know that a node has ended: by its id.
    pub(super) report_end: mpsc::UnboundedSender<u64>,
    /// Of the next node.
    pub(super) next_id: AtomicU64,
    pub(super) watchdog: Watchdog,
    /// Told when there is something new to look at that only we know of.
    pub(super) roused: Arc<Notify>,
    pub(super) chronicle: Arc<Chronicle>,
    /// Set when every node that goes on has its files, or was waited for long enough: then requests are answered.
    pub(super) all_resumed: Arc<OnceLock<()>>,
    /// For devices that hang when they are to go on.
    pub(super) patience: Patience,
}

impl Making {
    pub(super) fn video(&self, side: SideNode, choice: Choice) -> Result<Served, ServiceError> {
        let options = DeviceOptions {
            heap: self.options.heap.clone().filter(|_| choice.dma_heap),
            may_adopt: choice.adopt,
            ..self.options.clone()
        };
        let node_name = &side.node().spec().name;
        let inherited = self.survival.channel(node_name);
        let was_inherited = inherited.is_some();
        let takeover = side.take_over(was_inherited)?;
        let (channel, kept) = match inherited {
            Some((channel, kept)) => (channel, Some(kept)),
            None => {
                let (channel, kernel) = open(side.node())?;
                let kept = self.survival.keep(node_name, &channel, kernel);
                (channel, kept)
            }
        };
        let shelf = kept
            .as_ref()
            .and_then(|_| Shelf::of(self.survival.store(), node_name));
        let crew = Crew::default();
        let (handle, waiting) = device_runtime(&crew).map_err(ServiceError::System)?;
        let real = side.real().to_owned();
        let device = Device::new(real.clone(), options, handle.clone()).map_err(ServiceError::System)?;
        let mut left = self.survival.of_node(node_name);
        if !was_inherited {
            self.chronicle.lost(files_in(&left), "its node had ended");
            std::mem::take(&mut left).give_up(self.survival.store());
        }
        self.count(node_name, &channel, kept.is_some(), &mut left);
        let front = VideoNode::new(device, Arc::clone(&self.shims), shelf);
        let name = real.display().to_string();
        self.watchdog
            .add(&name, side.node(), &channel, Some(&handle), crew.clone());
        let resume = {
            let (front, again) = (Arc::clone(&front), Arc::clone(&channel));
            let (store, chronicle) = (Arc::clone(self.survival.store()), Arc::clone(&self.chronicle));
            move || resume(&front, &again, left, &store, &chronicle)
        };
        let resume = was_inherited.then_some(resume);
        let (id, server, closing) =
            self.serve(channel, Arc::clone(&front), side.node(), &crew, &name, resume)?;
        let served = Served {
            id,
            name,
            node: side.node().clone(),
            front: Front::Video(front),
            server,
            takeover,
            names: Some((side.names().0.to_owned(), side.names().1.to_owned())),
            closing,
            kept,
            _waiting: Some(waiting),
        };
        // Who may open it is settled already, and may have been changed since.
        if was_inherited {
            Ok(served)
        } else {
            granted(served)
        }
    }

    /// The node `wanted`, which shows `framebuffer`.
    pub(super) fn framebuffer(
        &self,
        wanted: FbNode,
        framebuffer: Arc<dyn Framebuffer>,
    ) -> Result<Served, ServiceError> {
        let FbNode { source, node, .. } = wanted;
        // A screen of our own ends with us, and who waits for it is told so at once.
        let outlives_us = matches!(source, FbSource::Real(_));
        let node_name = &node.spec().name;
        let inherited = self.survival.channel(node_name).filter(|_| outlives_us);
        let was_inherited = inherited.is_some();
        let (channel, kept) = match inherited {
            Some((channel, kept)) => (channel, Some(kept)),
            None => {
                let (channel, kernel) = open(&node)?;
                let kept = outlives_us.then(|| self.survival.keep(node_name, &channel, kernel));
                (channel, kept.flatten())
            }
        };
        let shelf = kept
            .as_ref()
            .map(|_| fb::Shelf::new(self.survival.store(), node_name));
        let mut left = self.survival.of_node(node_name);
        if !was_inherited {
            self.chronicle.lost(files_in(&left), "its node had ended");
            std::mem::take(&mut left).give_up(self.survival.store());
        }
        self.count(node_name, &channel, kept.is_some(), &mut left);
        let crew = Crew::default();
        let front = fb::FbNode::new(framebuffer, Arc::clone(&self.shims), shelf);
        let name = source.name();
        self.watchdog.add(&name, &node, &channel, None, crew.clone());
        let resume = {
            let (front, again) = (Arc::clone(&front), Arc::clone(&channel));
            let (store, chronicle) = (Arc::clone(self.survival.store()), Arc::clone(&self.chronicle));
            move || {
                let restored = front.restore(&mut left, again.tries());
                left.give_up(&store);
                chronicle.restored(restored.files, restored.lost);
                !restored.sleepers_unknown
            }
        };
        let resume = was_inherited.then_some(resume);
        let (id, server, closing) = self.serve(channel, Arc::clone(&front), &node, &crew, &name, resume)?;
        let served = Served {
            id,
            name,
            node,
            front: Front::Framebuffer(front),
            server,
            takeover: None,
            names: None,
            closing,
            kept,
            _waiting: None,
        };
        if was_inherited {
            Ok(served)
        } else {
            granted(served)
        }
    }

    /// Counts how many daemons end over the same thing, in a node that outlives us.
    fn count(&self, node: &str, channel: &Channel, is_kept: bool, left: &mut Inheritance) {
        if !is_kept {
            return;
        }
        match Tries::of_node(self.survival.store(), node, left) {
            Ok(tries) => channel.count(tries),
            Err(error) => {
                tracing::warn!(node, %error, "it is not counted how often vidcompatd ends over one request")
            }
        }
    }

    /// Serves `channel` on a thread of its own, which goes on with what a daemon before us has left first (`resume`): that asks
    /// the device's driver, and one that hangs must hold up no other device. It is waited for a moment. `resume` says whether
    /// everybody who waits can be told; else only the end of the node does.
    fn serve(
        &self,
        channel: Arc<Channel>,
        front: impl Handler,
        node: &Node,
        crew: &Crew,
        name: &str,
        resume: Option<impl FnOnce() -> bool + Send + 'static>,
    ) -> Result<(u64, JoinHandle<()>, Arc<Closing>), ServiceError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (device, crew, ends) = (name.to_owned(), crew.clone(), node.clone());
        let all_resumed = Arc::clone(&self.all_resumed);
        let end = End {
            id,
            report: self.report_end.clone(),
        };
        let closing = Arc::new(Closing::new(Arc::clone(&self.roused)));
        let handler = Passing {
            front,
            closing: Arc::clone(&closing),
            chronicle: Arc::clone(&self.chronicle),
        };
        let resuming = resume.is_some().then(|| Resuming::of(name, move || ends.abort()));
        let (resumed, has_resumed) = std::sync::mpsc::channel();
        let server = thread::Builder::new().name("cuse-reader".into()).spawn(move || {
            let _end = end;
            if let Some(resume) = resume {
                crew.join();
                let all_can_be_told = resume();
                crew.leave();
                // Nobody listens any more when it was too late.
                let _ = resumed.send(all_can_be_told);
                // A request that each daemon dies of is not to be taken for the fault of another node's files.
                all_resumed.wait();
                ask_again(&channel);
            }
            if let Err(error) = serve(channel, handler) {
                tracing::error!(device, %error, "the channel of a node broke");
            }
        });
        let server = server.map_err(ServiceError::System)?;
        if let Some(resuming) = resuming {
            resuming
                .wait(has_resumed, &self.patience)
                .map_err(ServiceError::System)?;
        }
        Ok((id, server, closing))
    }
}

/// The thread that serves a node. Dropped: it has ended, also where it has met a bug.
struct End {
    id: u64,
    report: mpsc::UnboundedSender<u64>,
}

impl Drop for End {
    fn drop(&mut self) {
        // Nobody listens any more when the end was asked for.
        let _ = self.report.send(self.id);
    }
}

/// The channel of a node, which exists from now on.
fn open(node: &Node) -> Result<(Arc<Channel>, Kernel), ServiceError> {
    let channel = Channel::open(Path::new(CUSE)).map_err(ServiceError::Cuse)?;
    let kernel = initialize(&channel, node.spec())?;
    node.verify()?;
    Ok((channel, kernel))
}

/// Goes on with the files of a daemon before us. `false`: there may
/// be somebody whom only the end of the node wakes.
fn resume(
    front: &VideoNode,
    channel: &Arc<Channel>,
    mut left: Inheritance,
    store: &Arc<Store>,
    chronicle: &Chronicle,
) -> bool {
    let restored = front.restore(&mut left, channel.tries());
    left.give_up(store);
    front.wake_pollers(channel);
    chronicle.restored(restored.files, restored.lost);
    !restored.sleepers_unknown
}

fn ask_again(channel: &Channel) {
    if let Err(error) = channel.resend() {
        tracing::error!(%error, "the kernel does not send requests again: who waits, waits for the end of the node");
    }
}

fn granted(mut served: Served) -> Result<Served, ServiceError> {
    let granted = served.node.grant().map_err(ServiceError::from);
    let granted = granted.and_then(|()| match &mut served.takeover {
        Some(takeover) => Ok(takeover.carried()?),
        None => Ok(()),
    });
    match granted {
        Ok(()) => Ok(served),
        Err(error) => {
            super::end(vec![served]);
            Err(error)
        }
    }
}

/// A runtime for one device on a thread of its own: a driver that holds its lock for long delays epoll only there.
fn device_runtime(crew: &Crew) -> io::Result<(Handle, oneshot::Sender<()>)> {
    let (joins, leaves, waits) = (crew.clone(), crew.clone(), crew.clone());
    let runtime: Runtime = Builder::new_current_thread()
        .on_thread_start(move || joins.join())
        .on_thread_stop(move || leaves.leave())
        .enable_io()
        .enable_time()
        .thread_keep_alive(KEEP_ALIVE)
        .build()?;
    let handle = runtime.handle().clone();
    let (sender, receiver) = oneshot::channel::<()>();
    thread::Builder::new()
        .name("device-ready".into())
        .spawn(move || {
            waits.join();
            // Ends with the sender: there is nothing to receive.
            drop(runtime.block_on(receiver));
            runtime.shutdown_background();
            waits.leave();
        })?;
    Ok((handle, sender))
}

#[cfg(test)]
mod tests {
    use super::End;
    use tokio::sync::mpsc;

    #[test]
    fn the_end_of_a_thread_that_panics_is_reported_too() {
        let (report, mut ended) = mpsc::unbounded_channel();
        let end = End { id: 7, report };
        let thread = std::thread::spawn(move || {
            let _end = end;
            panic!("a bug");
        });
        assert!(thread.join().is_err());
        assert_eq!(ended.try_recv(), Ok(7));
    }
}
