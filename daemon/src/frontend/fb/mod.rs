//! A framebuffer node of ours: CUSE requests to [`crate::backend::framebuffer`], and the answers back.

mod cmap;
mod file;
mod ioctl;
mod keep;
mod position;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use fuser::{Errno as FuseErrno, IoctlFlags, PollEvents};
use vidcompat_proto::Errno;
use vidcompat_proto::abi::ClientAbi;
use vidcompat_proto::ioc::Command;
use vidcompat_proto::ioctl::fbdev;
use vidcompat_proto::shim;
use zerocopy::IntoBytes;

use super::Restored;
use super::shim::Shims;
use crate::backend::framebuffer::Framebuffer;
use crate::cuse::{Caller, ForRelease, Handler, IoctlRequest, MAX_IO, Operation, Reply, Request, Turn};
use crate::observe::model;
use crate::survive::{Inheritance, Tries, What};
use file::FbFile;
use ioctl::{Next, Round};
pub use keep::Shelf;
use keep::{Opening, first_number};
use position::CallId;

/// The front end of one framebuffer.
pub struct FbNode {
    framebuffer: Arc<dyn Framebuffer>,
    shims: Arc<Shims>,
    files: Mutex<HashMap<u64, Open>>,
    next_fh: AtomicU64,
    ending: AtomicBool,
    /// Where files are kept that outlive us.
    shelf: Option<Shelf>,
}

struct Open {
    file: Arc<FbFile>,
    uid: u32,
    /// The thread that called last; 0 where it cannot be named. For people: by now it may be another's.
    last_tid: AtomicU32,
}

/// Files that one user may have open on one node, and all users together: each costs descriptors of ours.
const MAX_OPEN_PER_USER: usize = 256;
const MAX_OPEN: usize = 1024;

/// So many calls hang in drivers or in clients' memory that no thread is left for another.
const OVERLOADED: Errno = Errno::ENOMEM;

/// What the kernel says of a file whose driver has no poll (`DEFAULT_POLLMASK`).
const ALWAYS: PollEvents = PollEvents::POLLIN
    .union(PollEvents::POLLOUT)
    .union(PollEvents::POLLRDNORM)
    .union(PollEvents::POLLWRNORM);

impl FbNode {
    /// Serves `framebuffer`, also to the shims of `shims`. What is open outlives us on `shelf`.
    #[must_use]
    pub fn new(framebuffer: Arc<dyn Framebuffer>, shims: Arc<Shims>, shelf: Option<Shelf>) -> Arc<Self> {
        Arc::new(Self {
            framebuffer,
            shims,
            files: Mutex::default(),
            next_fh: AtomicU64::new(first_number()),
            ending: AtomicBool::new(false),
            shelf,
        })
    }

    /// Goes on with the files that a daemon before us has had open, before anything is read from the channel. Those that
    /// cannot go on find the device gone.
    #[must_use]
    pub fn restore(&self, inheritance: &mut Inheritance, tries: Option<&Tries>) -> Restored {
        let mut restored = Restored::default();
        let Some(shelf) = &self.shelf else { return restored };
        for (fh, image, descriptor, keeping) in shelf.restore(inheritance, &mut restored.lost) {
            let taken_up = tries.map(|tries| tries.take_up(What::File(fh)));
            if let Some(None) = &taken_up {
                let why = "vidcompatd has ended again and again when it was taken up";
                tracing::warn!(
                    file = fh,
                    "an open file of a framebuffer does not go on: {why}; please report this"
                );
                restored.lost.push(why.to_owned());
                continue;
            }
            match self.framebuffer.again(descriptor, image.opening.flags) {
                Ok(behind) => {
                    self.take_over(fh, FbFile::again(behind, image, keeping));
                    restored.files += 1;
                }
                Err(errno) => {
                    tracing::warn!(%errno, file = fh, "an open file of a framebuffer does not go on");
                    restored
                        .lost
                        .push(format!("its framebuffer does not go on: {errno}"));
                }
            }
        }
        restored
    }

    fn take_over(&self, fh: u64, file: Arc<FbFile>) {
        for (uid, token) in file.tokens() {
            self.shims.hello_again(&file, uid, token);
        }
        let open = Open {
            uid: file.opening.uid,
            last_tid: AtomicU32::new(0),
            file,
        };
        self.open_files().insert(fh, open);
    }

    /// The framebuffer behind it.
    #[must_use]
    pub fn framebuffer(&self) -> &Arc<dyn Framebuffer> {
        &self.framebuffer
    }

    /// The node goes away: further calls are answered as when a device is unplugged, and what is behind the files is closed
    /// as soon as the calls that are under way have ended.
    pub fn shut_down(&self) {
        self.ending.store(true, Ordering::SeqCst);
        let files = std::mem::take(&mut *self.open_files());
        for open in files.into_values() {
            self.shims.ended(&open.file);
        }
    }

    fn open_files(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        // Changed by single calls only: never half done.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, fh: u64, caller: Caller) -> Option<Arc<FbFile>> {
        let files = self.open_files();
        let open = files.get(&fh)?;
        open.last_tid.store(caller.tid, Ordering::Relaxed);
        Some(Arc::clone(&open.file))
    }

    /// How many files are open.
    pub fn open_files_count(&self) -> usize {
        self.open_files().len()
    }

    /// What is open, for status, in the order of opening.
    pub fn files(&self) -> Vec<model::File> {
        let mut handles: Vec<(u64, u32)> = self
            .open_files()
            .iter()
            .map(|(fh, open)| (*fh, open.last_tid.load(Ordering::Relaxed)))
            .collect();
        handles.sort_unstable();
        let file = |(fh, tid)| {
            let caller = crate::client::process_and_name(tid);
            model::File {
                fh,
                pid: caller.as_ref().map(|(pid, _)| *pid),
                comm: caller.map(|(_, name)| name),
                ..model::File::default()
            }
        };
        handles.into_iter().map(file).collect()
    }

    fn open(&self, caller: Caller, flags: libc::c_int, call: CallId) -> Result<u64, Errno> {
        let uid = caller.uid;
        let was_opened = |open: &Open| open.file.opening.by == call.unique;
        if call.is_resent
            && let Some((fh, _)) = self.open_files().iter().find(|(_, open)| was_opened(open))
        {
            return Ok(*fh);
        }
        let (all, of_user) = {
            let files = self.open_files();
            (files.len(), files.values().filter(|open| open.uid == uid).count())
        };
        if all >= MAX_OPEN || of_user >= MAX_OPEN_PER_USER {
            return Err(Errno::ENFILE);
        }
        let behind = self.framebuffer.open(flags)?;
        let fh = self.next_fh.fetch_add(1, Ordering::Relaxed);
        let opening = Opening {
            uid,
            flags,
            by: call.unique,
        };
        let open = Open {
            file: FbFile::new(behind, opening, fh, self.shelf.as_ref()),
            uid,
            last_tid: AtomicU32::new(caller.tid),
        };
        let mut files = self.open_files();
        // Under the lock, for who ends looks at the files after it has said so.
        if self.ending.load(Ordering::SeqCst) {
            return Err(Errno::ENODEV);
        }
        files.insert(fh, open);
        Ok(fh)
    }

    fn release(&self, fh: u64, reply: Reply<ForRelease>) {
        let open = self.open_files().remove(&fh);
        if let Some(open) = open {
            self.shims.ended(&open.file);
            open.file.close();
        }
        reply.released();
    }

    fn ioctl(&self, caller: Caller, request: IoctlRequest<'_>, turn: &Turn<'_>) {
        let outcome = self
            .file(request.fh, caller)
            .ok_or(Errno::ENODEV)
            .and_then(|file| {
                if turn.pass() {
                    self.round(&file, caller, &request)
                } else {
                    Err(OVERLOADED)
                }
            });
        match outcome {
            Ok(Next::Done(bytes)) => {
                let room = bytes.len().min(request.out_size as usize);
                request.reply.result(0, &bytes[..room]);
            }
            Ok(Next::Again(areas)) => request.reply.retry(&areas.input, &areas.output),
            Err(errno) => request.reply.failed(errno.raw()),
        }
    }

    fn round(&self, file: &Arc<FbFile>, caller: Caller, request: &IoctlRequest<'_>) -> Result<Next, Errno> {
        let command = Command(request.command);
        let abi = if request.flags.contains(IoctlFlags::FUSE_IOCTL_COMPAT) {
            ClientAbi::COMPAT
        } else {
            ClientAbi::Native
        };
        let meant = shim::meant_of_framebuffer(command);
        let round = Round::of(request, caller.tid, abi, meant.is_some());
        if command == shim::HELLO {
            let hello = self.shims.hello(file, caller.uid).ok_or(Errno::ENOTTY)?;
            file.remember_token(caller.uid, hello.token);
            return Ok(ioctl::tell(&round, hello.as_bytes()));
        }
        if command == shim::SEEK {
            return ioctl::seek(file, &round);
        }
        let row = fbdev::lookup(abi, meant.unwrap_or(command)).ok_or(Errno::ENOTTY)?;
        match ioctl::fbio(file, row, &round)? {
            Next::Again(areas) if areas.leave(abi) => Err(Errno::EFAULT),
            next => Ok(next),
        }
    }

    fn read(
        &self,
        caller: Caller,
        fh: u64,
        (done, call): (u64, CallId),
        size: usize,
    ) -> Result<Vec<u8>, Errno> {
        let file = self.file(fh, caller).ok_or(Errno::ENODEV)?;
        let place = file.position.of_call(caller.tid, done, call);
        let mut bytes = vec![0; size.min(MAX_IO as usize)];
        let count = file.behind.read(place.offset, &mut bytes)?;
        file.position.moved(place, count);
        file.commit();
        bytes.truncate(count);
        Ok(bytes)
    }

    fn write(&self, caller: Caller, fh: u64, (done, call): (u64, CallId), data: &[u8]) -> Result<u32, Errno> {
        let file = self.file(fh, caller).ok_or(Errno::ENODEV)?;
        let place = file.position.of_call(caller.tid, done, call);
        let count = file.behind.write(place.offset, data)?.min(data.len());
        file.position.moved(place, count);
        file.commit();
        u32::try_from(count).map_err(|_| Errno::EIO)
    }
}

fn call_of<K>(reply: &Reply<K>) -> CallId {
    CallId {
        unique: reply.first_unique(),
        is_resent: reply.is_resent(),
    }
}

fn fuse(errno: Errno) -> FuseErrno {
    FuseErrno::from_i32(errno.raw())
}

impl Handler for Arc<FbNode> {
    fn handle(&self, request: Request<'_>, turn: &Turn<'_>) {
        let Request { caller, operation } = request;
        match operation {
            Operation::Open { flags, reply } => {
                let opened = if turn.pass() {
                    self.open(caller, flags.0, call_of(&reply))
                } else {
                    Err(OVERLOADED)
                };
                match opened {
                    Ok(fh) => reply.opened(fh),
                    Err(errno) => reply.error(fuse(errno)),
                }
            }
            Operation::Release { fh, reply } => {
                if turn.pass() {
                    self.release(fh, reply);
                } else {
                    // What hangs may be what this ends.
                    let node = Arc::clone(self);
                    thread::spawn(move || node.release(fh, reply));
                }
            }
            Operation::Ioctl(request) => self.ioctl(caller, request, turn),
            Operation::Read {
                fh,
                offset,
                size,
                reply,
                ..
            } => {
                let read = match turn.pass() {
                    true => self.read(caller, fh, (offset, call_of(&reply)), size as usize),
                    false => Err(OVERLOADED),
                };
                match read {
                    Ok(bytes) => reply.data(&bytes),
                    Err(errno) => reply.error(fuse(errno)),
                }
            }
            Operation::Write {
                fh,
                offset,
                data,
                reply,
                ..
            } => {
                let written = match turn.pass() {
                    true => self.write(caller, fh, (offset, call_of(&reply)), data),
                    false => Err(OVERLOADED),
                };
                match written {
                    Ok(count) => reply.written(count),
                    Err(errno) => reply.error(fuse(errno)),
                }
            }
            Operation::Poll { fh, reply, .. } => reply.ready(match self.file(fh, caller) {
                Some(_) => ALWAYS,
                None => PollEvents::POLLERR | PollEvents::POLLHUP,
            }),
            // Nothing here waits for longer than a vertical blank.
            Operation::Interrupt { .. } => {}
        }
    }
}
