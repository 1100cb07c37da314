//! What another user does, in a process of its own: `guest-suite --helper shim-attack WHAT SOCKET ...`.

use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::net::{Shutdown, shutdown, sockopt};
use vidcompat_proto::shim::{Answer, Ask, Outcome};

use super::link::{Connection, Link, hex, token};
use super::{PATTERN, map};
use crate::sys::{Area, PAGE, Rights, Source};

/// Does `words`, and says how that went.
pub fn act(words: &[&str]) -> anyhow::Result<String> {
    match words {
        ["steal", socket, token] => steal(socket.as_ref(), token),
        ["own", of_another] => own(of_another),
        ["messages", socket] => messages(socket.as_ref()),
        ["connect", socket, count, seconds] => connect(
            socket.as_ref(),
            count.parse()?,
            Duration::from_secs(seconds.parse()?),
        ),
        ["linger", socket, count] => linger(socket.as_ref(), count.parse()?),
        _ => bail!("{words:?}"),
    }
}

/// Asks everything with a token that was seen somewhere.
fn steal(socket: &Path, seen: &str) -> anyhow::Result<String> {
    let link = Link {
        token: token(seen)?,
        socket: socket.to_owned(),
        flags: 0,
    };
    let asks = [
        map(0, PAGE as u64),
        Ask::Fetch { ticket: 1 },
        Ask::NextMove,
        Ask::Moved {
            client_addr: 0x10000,
            length: 4096,
            outcome: Outcome::Done,
        },
        Ask::IsLent {
            client_addr: 0x10000,
            length: 4096,
        },
    ];
    let answers = asks
        .into_iter()
        .map(|ask| Ok(format!("{:?}", link.ask(ask)?.context("the end")?)));
    Ok(answers.collect::<anyhow::Result<Vec<_>>>()?.join(" "))
}

/// Is passed a file of ours as stdin, and asks for itself.
fn own(of_another: &str) -> anyhow::Result<String> {
    let link = Link::of(std::io::stdin())?;
    ensure!(hex(link.token) != of_another, "the same token");
    let answer = link.ask(map(0, PAGE as u64))?.context("the end")?;
    let (Answer::Map { offset }, Some(file)) = answer else {
        bail!("{answer:?}");
    };
    let area = Area::reserve(PAGE)?;
    area.map(0, PAGE, Source::Shared(file.as_fd(), offset), Rights::ReadOnly)?;
    ensure!(area.read(0, PATTERN.len())? == PATTERN, "other memory");
    Ok(hex(link.token))
}

/// Everything that the shim does not say, forty times. Stdin is a file of ours.
fn messages(socket: &Path) -> anyhow::Result<String> {
    let link = Link::of(std::io::stdin())?;
    let right = map(0, PAGE as u64).encode(link.token);
    let changed = |at: usize, to: &[u8]| {
        let mut message = right;
        message[at..at + to.len()].copy_from_slice(to);
        message.to_vec()
    };
    let mut nonsense: Vec<Vec<u8>> = [0, 1, 63, 65, 4096, 100_000]
        .map(|size| vec![b'x'; size])
        .to_vec();
    nonsense.extend([1, 24, 63].map(|size| right[..size].to_vec()));
    nonsense.push([right.as_slice(), &[0]].concat());
    nonsense.extend([
        changed(0, b"VIDC"),
        changed(4, &[9, 9]),
        changed(6, &[0, 0]),
        changed(6, &[0xff, 0xff]),
        changed(6, &[107, 0]),
        changed(8, &[0; 16]),
        vec![0; 64],
        vec![0xff; 64],
    ]);
    let mut served = 0;
    for round in 0..40 {
        for message in &nonsense {
            let connection = Connection::to(socket)?;
            // The one before may not be closed yet, and then this one is one too many.
            let _ = connection.send(message, &[]);
            match round % 4 {
                0 => shutdown(&connection.0, Shutdown::Write)?,
                1 => shutdown(&connection.0, Shutdown::Read)?,
                2 => continue,
                _ => {}
            }
            match connection.receive()? {
                None | Some((Answer::Errno(_), None)) => {}
                Some(other) => bail!("{message:?}: {other:?}"),
            }
        }
        // What is right, with files that nobody wants; and nobody takes the answers.
        let connection = Connection::to(socket)?;
        let (null, ours) = (File::open("/dev/null")?, std::io::stdin());
        let pipe = std::io::pipe()?;
        let files = [
            null.as_fd(),
            ours.as_fd(),
            pipe.0.as_fd(),
            pipe.1.as_fd(),
            connection.0.as_fd(),
        ];
        while connection.send(&right, &files).is_ok() {}
        if let Some((Answer::Map { .. }, Some(_))) = connection.receive()? {
            served += 1;
        }
    }
    Ok(format!("served {served}"))
}

/// Connects without end: `count` connections are kept, and others come and go.
fn connect(socket: &Path, count: usize, time: Duration) -> anyhow::Result<String> {
    const THREADS: usize = 4;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let begun = Instant::now();
    let threads = (0..THREADS).map(|_| {
        let socket = socket.to_owned();
        thread::spawn(move || {
            let (mut kept, mut made) = (Vec::new(), 0);
            // A busy machine takes longer to as many.
            while begun.elapsed() < time || kept.len() < count / THREADS && begun.elapsed() < 4 * time {
                let connection = Connection::to(&socket)?;
                made += 1;
                if kept.len() < count / THREADS {
                    kept.push(connection);
                }
            }
            Ok((kept.len(), made))
        })
    });
    let mut sum = (0, 0);
    for thread in threads.collect::<Vec<_>>() {
        let (kept, made) = thread
            .join()
            .map_err(|_| anyhow::anyhow!("a panic"))
            .and_then(|made: anyhow::Result<_>| made)?;
        sum = (sum.0 + kept, sum.1 + made);
    }
    Ok(format!("{} {}", sum.0, sum.1))
}

/// Sends files that are not closed in a moment: TCP connections whose other end takes nothing.
fn linger(socket: &Path, count: usize) -> anyhow::Result<String> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    sockopt::set_socket_recv_buffer_size(&listener, 4096)?;
    let mut kept = Vec::new();
    for number in 0..count {
        let mut stream = TcpStream::connect(listener.local_addr()?)?;
        let (other, _) = listener.accept()?;
        sockopt::set_socket_linger(&stream, Some(Duration::from_secs(600)))?;
        sockopt::set_socket_send_buffer_size(&stream, 4096)?;
        stream.set_nonblocking(true)?;
        while stream.write(&[0; 65536]).is_ok() {}
        let connection = Arc::new(Connection::to(socket)?);
        let sending = Arc::clone(&connection);
        if number == 0 {
            let sent = sending.send(&[0; 64], &[stream.as_fd()]);
            if sent == Err(rustix::io::Errno::PERM) {
                // Linux 6.16 and later.
                return Ok("refused".to_owned());
            }
        }
        // Whoever lets go of the stream last must wait. Where that is us, it is this thread.
        thread::spawn(move || {
            let _ = sending.send(&[0; 64], &[stream.as_fd()]);
            drop(stream);
        });
        kept.push((other, connection));
    }
    println!("sent {count}");
    // Until somebody closes our stdin; then the other ends are closed, and nothing is waited for any more.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    drop(kept);
    Ok("ended".to_owned())
}
