//! The cases of `errnos`.

use std::os::fd::AsRawFd;

use vidcompat_proto::abi::v4l2::{V4l2Format, V4l2RequestBuffers};
use zerocopy::FromZeros;

use super::errnos::{Bench, Case, Differs, word};
use crate::sys::{self, Access, PAGE, Pages};
use crate::video::{CAPTURE, buf_flag, buffer, command, memory};

const fn case(name: &'static str, play: fn(&Bench) -> String) -> Case {
    Case {
        name,
        play,
        differs: None,
    }
}

impl Case {
    const fn differs(mut self, real: &'static str, ours: &'static str, why: &'static str) -> Self {
        self.differs = Some(Differs {
            kernel: "",
            real,
            ours,
            why,
        });
        self
    }

    const fn differs_on(
        mut self,
        kernel: &'static str,
        real: &'static str,
        ours: &'static str,
        why: &'static str,
    ) -> Self {
        self.differs = Some(Differs {
            kernel,
            real,
            ours,
            why,
        });
        self
    }
}

/// The offset of the last byte that the pages have.
fn tail(bench: &Bench) -> usize {
    bench.pages.len()
}

const FORCE: &str = "6.1 pins with FOLL_FORCE; process_vm_writev has no force";
const WRAP: &str = "6.1 says EFAULT of a range that wraps around, 6.12 EOVERFLOW; ours is as 6.12 on both";

/// QBUF, PREPARE_BUF.
pub const GIVING: &[Case] = &[
    case("QBUF of a good buffer", |b| b.qbuf(|_| ())),
    case("QBUF, pointer NULL", |b| b.qbuf(|buffer| buffer.m = 0)),
    case("QBUF, pointer 1", |b| b.qbuf(|buffer| buffer.m = 1)),
    case("QBUF, unmapped", |b| {
        b.pages.unmap(0, b.pages.len());
        b.qbuf(|_| ())
    }),
    case("QBUF, read-only", |b| {
        let _ = b.pages.protect(0, b.pages.len(), Access::ReadOnly);
        b.qbuf(|_| ())
    })
    .differs_on("6.1", "ok(2) ok[", "ok(2) EFAULT", FORCE),
    case("QBUF, PROT_NONE", |b| {
        let _ = b.pages.protect(0, b.pages.len(), Access::None);
        b.qbuf(|_| ())
    })
    .differs_on("6.1", "ok(2) ok[", "ok(2) EFAULT", FORCE),
    case("QBUF, one read-only page in the middle", |b| {
        let _ = b.pages.protect(4 * PAGE, PAGE, Access::ReadOnly);
        b.qbuf(|_| ())
    })
    .differs_on("6.1", "ok(2) ok[", "ok(2) EFAULT", FORCE),
    case("QBUF, a hole in the middle", |b| {
        b.pages.unmap(4 * PAGE, PAGE);
        b.qbuf(|_| ())
    }),
    case(
        "QBUF, a range that runs off the end of the mapping by a byte",
        |b| {
            b.pages.unmap(b.pages.len() - PAGE, PAGE);
            let end = b.pages.at(b.pages.len() - PAGE);
            b.qbuf(|buffer| buffer.m = end - u64::from(buffer.length) + 1)
        },
    ),
    case("QBUF, the last byte of a mapping", |b| {
        let end = b.pages.at(tail(b));
        b.qbuf(|buffer| buffer.m = end - u64::from(buffer.length))
    }),
    case("QBUF, an odd address", |b| b.qbuf(|buffer| buffer.m += 3)),
    case("QBUF, kernel address", |b| {
        b.qbuf(|buffer| buffer.m = 0xffff_8880_0000_0000)
    }),
    case("QBUF, vsyscall page", |b| {
        b.qbuf(|buffer| buffer.m = 0xffff_ffff_ff60_0000)
    }),
    case("QBUF, non-canonical address", |b| {
        b.qbuf(|buffer| buffer.m = 0x0000_9000_0000_0000)
    }),
    case("QBUF, a range across the end of user space", |b| {
        b.qbuf(|buffer| buffer.m = 0x7fff_ffff_e000)
    }),
    case("QBUF, a range that wraps around", |b| {
        b.qbuf(|buffer| buffer.m = u64::MAX - 4095)
    })
    .differs_on("6.1", "ok(2) EFAULT", "ok(2) EOVERFLOW", WRAP),
    case("QBUF, the last address", |b| b.qbuf(|buffer| buffer.m = u64::MAX)).differs_on(
        "6.1",
        "ok(2) EFAULT",
        "ok(2) EOVERFLOW",
        WRAP,
    ),
    case("QBUF, length one below sizeimage", |b| {
        b.qbuf(|buffer| buffer.length -= 1)
    }),
    case("QBUF, length 0", |b| b.qbuf(|buffer| buffer.length = 0)),
    case("QBUF, length one above sizeimage", |b| {
        b.qbuf(|buffer| buffer.length += 1)
    }),
    case("QBUF, length beyond all memory", |b| {
        b.qbuf(|buffer| buffer.length = u32::MAX)
    }),
    case("QBUF, length 0x7fffffff", |b| {
        b.qbuf(|buffer| buffer.length = 0x7fff_ffff)
    }),
    case("QBUF, index just beyond", |b| b.qbuf(|buffer| buffer.index = 2)),
    case("QBUF, index 99", |b| b.qbuf(|buffer| buffer.index = 99)),
    case("QBUF, index 0xffffffff", |b| {
        b.qbuf(|buffer| buffer.index = u32::MAX)
    }),
    case("QBUF, type output", |b| b.qbuf(|buffer| buffer.buf_type = 2)),
    case("QBUF, type 0", |b| b.qbuf(|buffer| buffer.buf_type = 0)),
    case("QBUF, type vbi capture", |b| b.qbuf(|buffer| buffer.buf_type = 4)),
    case("QBUF, type multi-planar with a huge number of planes", |b| {
        b.qbuf(|buffer| buffer.buf_type = 9)
    }),
    case("QBUF, type multi-planar with no plane", |b| {
        b.qbuf(|buffer| (buffer.buf_type, buffer.length) = (9, 0))
    }),
    case("QBUF, type multi-planar with one plane at NULL", |b| {
        b.qbuf(|buffer| (buffer.buf_type, buffer.length, buffer.m) = (9, 1, 0))
    }),
    case("QBUF, type 99", |b| b.qbuf(|buffer| buffer.buf_type = 99)),
    case("QBUF, memory 0", |b| b.qbuf(|buffer| buffer.memory = 0)),
    case("QBUF, memory MMAP", |b| {
        b.qbuf(|buffer| buffer.memory = memory::MMAP)
    }),
    case("QBUF, memory OVERLAY", |b| b.qbuf(|buffer| buffer.memory = 3)),
    case("QBUF, memory DMABUF", |b| {
        b.qbuf(|buffer| buffer.memory = memory::DMABUF)
    }),
    case("QBUF, memory 99", |b| b.qbuf(|buffer| buffer.memory = 99)),
    case("QBUF, flag REQUEST_FD with fd -1", |b| {
        b.qbuf(|buffer| (buffer.flags, buffer.request_fd) = (buf_flag::REQUEST_FD, u32::MAX))
    })
    .differs(
        "ok(2) EINVAL",
        "ok(2) EBADR",
        "ours has no requests, and says so in its capabilities",
    ),
    case("QBUF, flag REQUEST_FD with an fd that is no request", |b| {
        let fd = b.any_fd();
        b.qbuf(|buffer| (buffer.flags, buffer.request_fd) = (buf_flag::REQUEST_FD, fd))
    })
    .differs(
        "ok(2) EINVAL",
        "ok(2) EBADR",
        "ours has no requests, and says so in its capabilities",
    ),
    case("QBUF, request_fd without the flag", |b| {
        b.qbuf(|buffer| buffer.request_fd = 5)
    }),
    case("QBUF, every flag but REQUEST_FD", |b| {
        b.qbuf(|buffer| buffer.flags = !buf_flag::REQUEST_FD)
    }),
    case(
        "QBUF, reserved2, field, sequence, timestamp, timecode, bytesused filled",
        |b| {
            b.qbuf(|buffer| {
                buffer.reserved2 = 7;
                buffer.field = 99;
                buffer.sequence = 77;
                buffer.timestamp = [5, 6];
                buffer.timecode = [9; 16];
                buffer.bytesused = u32::MAX;
            })
        },
    ),
    case("QBUF before REQBUFS", |b| {
        b.show(b.video.on_buffer(command::QBUF, b.good()))
    }),
    case("PREPARE_BUF before REQBUFS", |b| {
        b.show(b.video.on_buffer(command::PREPARE_BUF, b.good()))
    }),
    case("QBUF twice", |b| {
        let first = b.qbuf(|_| ());
        let again = b.show(b.video.on_buffer(command::QBUF, b.good()));
        format!("{first}; {again}; {}", b.show(b.video.querybuf(0)))
    }),
    case("QBUF of two buffers in the same memory", |b| {
        let first = b.qbuf(|_| ());
        format!("{first}; {}", b.show(b.video.qbuf(1, b.pages.at(0), b.size)))
    }),
    case("QBUF with a new pointer after STREAMOFF", |b| {
        let first = b.qbuf(|_| ());
        let off = word(b.video.streamoff());
        format!(
            "{first}; {off}; {}",
            b.show(b.video.qbuf(0, b.pages.at(8192), b.size))
        )
    }),
    case("QBUF with a bad pointer after a good one and STREAMOFF", |b| {
        let first = b.qbuf(|_| ());
        let off = word(b.video.streamoff());
        let bad = b.show(b.video.qbuf(0, 0, b.size));
        format!("{first}; {off}; {bad}; {}", b.show(b.video.querybuf(0)))
    }),
    case("QBUF too short after a good one and STREAMOFF", |b| {
        let first = b.qbuf(|_| ());
        let off = word(b.video.streamoff());
        let bad = b.show(b.video.qbuf(0, b.pages.at(0), b.size - 1));
        format!("{first}; {off}; {bad}; {}", b.show(b.video.querybuf(0)))
    }),
    case("QBUF with a good pointer after a bad one", |b| {
        let bad = b.qbuf(|buffer| buffer.m = 0);
        format!("{bad}; {}", b.show(b.video.on_buffer(command::QBUF, b.good())))
    }),
    case("PREPARE_BUF of a good buffer", |b| {
        b.give(command::PREPARE_BUF, |_| ())
    }),
    case("PREPARE_BUF, pointer NULL", |b| {
        b.give(command::PREPARE_BUF, |buffer| buffer.m = 0)
    }),
    case("PREPARE_BUF, length one below sizeimage", |b| {
        b.give(command::PREPARE_BUF, |buffer| buffer.length -= 1)
    }),
    case("PREPARE_BUF, index 99", |b| {
        b.give(command::PREPARE_BUF, |buffer| buffer.index = 99)
    }),
    case("PREPARE_BUF, type output", |b| {
        b.give(command::PREPARE_BUF, |buffer| buffer.buf_type = 2)
    }),
    case("PREPARE_BUF, memory MMAP", |b| {
        b.give(command::PREPARE_BUF, |buffer| buffer.memory = memory::MMAP)
    }),
    case("PREPARE_BUF, flag REQUEST_FD", |b| {
        b.give(command::PREPARE_BUF, |buffer| buffer.flags = buf_flag::REQUEST_FD)
    }),
    case("PREPARE_BUF, every flag but REQUEST_FD", |b| {
        b.give(command::PREPARE_BUF, |buffer| {
            buffer.flags = !buf_flag::REQUEST_FD
        })
    }),
    case("PREPARE_BUF twice", |b| {
        let first = b.give(command::PREPARE_BUF, |_| ());
        format!(
            "{first}; {}",
            b.show(b.video.on_buffer(command::PREPARE_BUF, b.good()))
        )
    }),
    case("PREPARE_BUF of a queued buffer", |b| {
        let first = b.qbuf(|_| ());
        format!(
            "{first}; {}",
            b.show(b.video.on_buffer(command::PREPARE_BUF, b.good()))
        )
    }),
    case("QBUF after PREPARE_BUF with pointer and length 0", |b| {
        let first = b.give(command::PREPARE_BUF, |_| ());
        let queued = b.show(b.video.qbuf(0, 0, 0));
        format!("{first}; {queued}; {}", b.show(b.video.querybuf(0)))
    }),
    case("QBUF after PREPARE_BUF with another pointer", |b| {
        let first = b.give(command::PREPARE_BUF, |_| ());
        format!("{first}; {}", b.show(b.video.qbuf(0, b.pages.at(4096), b.size)))
    }),
    case("STREAMOFF of a prepared buffer", |b| {
        let first = b.give(command::PREPARE_BUF, |_| ());
        let off = word(b.video.streamoff());
        format!("{first}; {off}; {}", b.show(b.video.querybuf(0)))
    }),
];

fn request(count: u32) -> V4l2RequestBuffers {
    V4l2RequestBuffers {
        count,
        buf_type: CAPTURE,
        memory: memory::USERPTR,
        ..V4l2RequestBuffers::default()
    }
}

const NOT_OFFERED: &str = "CUSE can neither mmap nor give an fd: MMAP is not offered";

/// REQBUFS, CREATE_BUFS.
pub const ALLOCATING: &[Case] = &[
    case("REQBUFS 0 on a fresh file", |b| b.reqbufs(request(0))),
    case("REQBUFS 1", |b| b.reqbufs(request(1))),
    case("REQBUFS 2", |b| b.reqbufs(request(2))),
    case("REQBUFS 3", |b| b.reqbufs(request(3))),
    case("REQBUFS 32", |b| b.reqbufs(request(32))),
    case("REQBUFS 33", |b| b.reqbufs(request(33))),
    case("REQBUFS 64", |b| b.reqbufs(request(64))),
    case("REQBUFS 1000", |b| b.reqbufs(request(1000))),
    case("REQBUFS 0xffffffff", |b| b.reqbufs(request(u32::MAX))),
    case("REQBUFS, flags and reserved filled", |b| {
        b.reqbufs(V4l2RequestBuffers {
            flags: 0xff,
            reserved: [1, 2, 3],
            capabilities: 0xffff,
            ..request(2)
        })
    }),
    case("REQBUFS, type 0", |b| {
        b.reqbufs(V4l2RequestBuffers {
            buf_type: 0,
            ..request(2)
        })
    }),
    case("REQBUFS, type output", |b| {
        b.reqbufs(V4l2RequestBuffers {
            buf_type: 2,
            ..request(2)
        })
    }),
    case("REQBUFS, type vbi capture", |b| {
        b.reqbufs(V4l2RequestBuffers {
            buf_type: 4,
            ..request(2)
        })
    }),
    case("REQBUFS, type multi-planar capture", |b| {
        b.reqbufs(V4l2RequestBuffers {
            buf_type: 9,
            ..request(2)
        })
    }),
    case("REQBUFS, type 0x80", |b| {
        b.reqbufs(V4l2RequestBuffers {
            buf_type: 0x80,
            ..request(2)
        })
    }),
    case("REQBUFS, memory 0", |b| {
        b.reqbufs(V4l2RequestBuffers {
            memory: 0,
            ..request(2)
        })
    }),
    case("REQBUFS, memory OVERLAY", |b| {
        b.reqbufs(V4l2RequestBuffers {
            memory: 3,
            ..request(2)
        })
    }),
    case("REQBUFS, memory 5", |b| {
        b.reqbufs(V4l2RequestBuffers {
            memory: 5,
            ..request(2)
        })
    }),
    case("REQBUFS, memory MMAP", |b| {
        b.reqbufs(V4l2RequestBuffers {
            memory: memory::MMAP,
            ..request(2)
        })
    })
    .differs("ok[", "EINVAL[", NOT_OFFERED),
    case("REQBUFS 0, memory MMAP", |b| {
        b.reqbufs(V4l2RequestBuffers {
            memory: memory::MMAP,
            ..request(0)
        })
    })
    .differs("ok[", "EINVAL[", NOT_OFFERED),
    case("REQBUFS, memory DMABUF", |b| {
        b.reqbufs(V4l2RequestBuffers {
            memory: memory::DMABUF,
            ..request(2)
        })
    }),
    case("REQBUFS 3, then 5, then 2, then 0", |b| {
        let counts = [3, 5, 2, 0].map(|count| b.reqbufs(request(count)));
        format!("{counts:?} {}", b.show(b.video.querybuf(0)))
    }),
    case("REQBUFS again with a queued buffer", |b| {
        let first = b.qbuf(|_| ());
        format!(
            "{first}; {}; {}",
            b.reqbufs(request(3)),
            b.show(b.video.querybuf(0))
        )
    }),
    case("REQBUFS 0 with a queued buffer", |b| {
        let first = b.qbuf(|_| ());
        format!(
            "{first}; {}; {}",
            b.reqbufs(request(0)),
            b.show(b.video.querybuf(0))
        )
    }),
    case("REQBUFS while streaming", |b| {
        let first = b.qbuf(|_| ());
        format!(
            "{first}; {}; {}; {}",
            word(b.video.streamon()),
            b.reqbufs(request(2)),
            b.reqbufs(request(0))
        )
    }),
    case("REQBUFS of another memory with buffers", |b| {
        let first = b.reqbufs(request(2));
        format!(
            "{first}; {}",
            b.reqbufs(V4l2RequestBuffers {
                memory: 9,
                ..request(2)
            })
        )
    }),
    case("CREATE_BUFS 0", |b| b.create(0, |_| ())),
    case("CREATE_BUFS 1", |b| b.create(1, |_| ())),
    case("CREATE_BUFS 3, then QUERYBUF of the last", |b| {
        format!(
            "{}; {}; {}",
            b.create(3, |_| ()),
            b.show(b.video.querybuf(2)),
            b.show(b.video.querybuf(3))
        )
    }),
    case("CREATE_BUFS 1000", |b| b.create(1000, |_| ())),
    case("CREATE_BUFS 0xffffffff", |b| b.create(u32::MAX, |_| ())),
    case("CREATE_BUFS, sizeimage one less", |b| {
        b.create(1, |create| set_sizeimage(&mut create.format, -1))
    }),
    case("CREATE_BUFS, sizeimage one more", |b| {
        let made = b.create(1, |create| set_sizeimage(&mut create.format, 1));
        format!(
            "{made}; {}; {}",
            b.show(b.video.querybuf(0)),
            b.show(b.video.on_buffer(command::QBUF, b.good()))
        )
    }),
    case("CREATE_BUFS, sizeimage 0", |b| {
        b.create(1, |create| create.format.fmt[20..24].fill(0))
    }),
    case("CREATE_BUFS, type output", |b| {
        b.create(1, |create| create.format.buf_type = 2)
    }),
    case("CREATE_BUFS, type 0", |b| {
        b.create(1, |create| create.format.buf_type = 0)
    }),
    case("CREATE_BUFS, type multi-planar capture", |b| {
        b.create(1, |create| create.format.buf_type = 9)
    }),
    case("CREATE_BUFS, memory 0", |b| {
        b.create(1, |create| create.memory = 0)
    }),
    case("CREATE_BUFS, memory 5", |b| {
        b.create(1, |create| create.memory = 5)
    }),
    case("CREATE_BUFS, memory MMAP", |b| {
        b.create(1, |create| create.memory = memory::MMAP)
    })
    .differs("ok[", "EINVAL[", NOT_OFFERED),
    case("CREATE_BUFS 0, memory MMAP", |b| {
        b.create(0, |create| create.memory = memory::MMAP)
    })
    .differs("ok[", "EINVAL[", NOT_OFFERED),
    case("CREATE_BUFS, flags, index and reserved filled", |b| {
        b.create(1, |create| {
            create.index = 77;
            create.flags = u32::MAX;
            create.max_num_buffers = 77;
            create.capabilities = u32::MAX;
            create.reserved = [7; 5];
        })
    }),
    case("CREATE_BUFS after REQBUFS", |b| {
        format!(
            "{}; {}; {}",
            b.reqbufs(request(2)),
            b.create(2, |_| ()),
            b.create(0, |_| ())
        )
    }),
    case("CREATE_BUFS of another memory after REQBUFS", |b| {
        format!(
            "{}; {}",
            b.reqbufs(request(2)),
            b.create(2, |create| create.memory = memory::MMAP)
        )
    }),
    case("CREATE_BUFS beyond the last buffer", |b| {
        format!(
            "{}; {}; {}",
            b.reqbufs(request(31)),
            b.create(40, |_| ()),
            b.create(1, |_| ())
        )
    }),
    case("CREATE_BUFS when the queue is full", |b| {
        format!(
            "{}; {}; {}",
            b.reqbufs(request(64)),
            b.create(1, |_| ()),
            b.create(64, |_| ())
        )
    }),
    case("CREATE_BUFS while streaming", |b| {
        let first = b.qbuf(|_| ());
        let on = word(b.video.streamon());
        format!(
            "{first}; {on}; {}; {}",
            b.create(1, |_| ()),
            b.show(b.video.querybuf(2))
        )
    }),
    case("REMOVE_BUFS of a buffer that is not queued", |b| {
        format!("{}; {}", b.reqbufs(request(4)), word(remove(b, 2, 1)))
    }),
    case(
        "REMOVE_BUFS of nothing, beyond the end, over the end, twice",
        |b| {
            let made = b.reqbufs(request(4));
            let removed = [(0, 0), (4, 1), (3, 2), (1, 2), (1, 1), (u32::MAX, 2)];
            format!(
                "{made}; {:?}",
                removed.map(|(index, count)| word(remove(b, index, count)))
            )
        },
    ),
    case(
        "REMOVE_BUFS of a queued buffer, of one behind it, of all after STREAMOFF",
        |b| {
            let first = b.qbuf(|_| ());
            let queued = word(remove(b, 0, 1));
            let behind = word(remove(b, 1, 1));
            let off = word(b.video.streamoff());
            format!("{first}; {queued}; {behind}; {off}; {}", word(remove(b, 0, 1)))
        },
    ),
    case(
        "QUERYBUF and QBUF in a hole, CREATE_BUFS into it and behind it",
        |b| {
            let made = b.reqbufs(request(6));
            let hole = word(remove(b, 2, 2));
            let query = [1, 2, 3, 4].map(|index| b.show(b.video.querybuf(index)));
            let into = b.qbuf(|buffer| buffer.index = 3);
            let small = b.create(1, |_| ());
            let large = b.create(3, |_| ());
            let after = [2, 3, 6, 8].map(|index| b.show(b.video.querybuf(index)));
            let behind = b.qbuf(|buffer| buffer.index = 4);
            format!("{made}; {hole}; {query:?}; {into}; {small}; {large}; {after:?}; {behind}")
        },
    ),
];

fn set_sizeimage(format: &mut V4l2Format, by: i32) {
    let size = format.pix_sizeimage().wrapping_add_signed(by);
    format.fmt[20..24].copy_from_slice(&size.to_ne_bytes());
}

/// `struct v4l2_remove_buffers`: index, count, type, reserved.
fn remove(bench: &Bench, index: u32, count: u32) -> Result<i32, nix::errno::Errno> {
    let mut argument = [0u32; 16];
    argument[..3].copy_from_slice(&[index, count, CAPTURE]);
    sys::ioctl(&bench.video, command::REMOVE_BUFS, &mut argument)
}

fn nonblocking(bench: &Bench) {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    // A failure shows in the outcome: the case would hang.
    let _ = fcntl(&bench.video, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK));
}

fn dqbuf(bench: &Bench, buf_type: u32, memory: u32) -> String {
    let mut argument = buffer(0, 0, 0);
    (argument.buf_type, argument.memory) = (buf_type, memory);
    bench.show(bench.video.on_buffer(command::DQBUF, argument))
}

fn streaming(bench: &Bench) -> String {
    nonblocking(bench);
    format!(
        "{} {}",
        word(bench.video.reqbufs(2)),
        word(bench.video.streamon())
    )
}

fn stream_type(bench: &Bench, command: u64, buf_type: u32) -> String {
    word(sys::ioctl(&bench.video, command, &mut buf_type.clone()))
}

fn set_format(bench: &Bench, command: u64) -> String {
    match bench.video.format() {
        Ok(mut format) => word(sys::ioctl(&bench.video, command, &mut format)),
        Err(errno) => format!("G_FMT: {errno:?}"),
    }
}

/// DQBUF, QUERYBUF, STREAMON, STREAMOFF, and what must not change under a queue.
pub const STREAMING: &[Case] = &[
    case("DQBUF on a fresh file", |b| dqbuf(b, CAPTURE, memory::USERPTR)),
    case("DQBUF of type output on a fresh file", |b| {
        dqbuf(b, 2, memory::USERPTR)
    }),
    case("DQBUF before STREAMON", |b| {
        format!(
            "{} {}",
            word(b.video.reqbufs(2)),
            dqbuf(b, CAPTURE, memory::USERPTR)
        )
    }),
    case("DQBUF with nothing queued, non-blocking", |b| {
        format!("{} {}", streaming(b), dqbuf(b, CAPTURE, 2))
    }),
    case("DQBUF of type output while streaming", |b| {
        format!("{} {}", streaming(b), dqbuf(b, 2, 2))
    }),
    case("DQBUF of type 0 while streaming", |b| {
        format!("{} {}", streaming(b), dqbuf(b, 0, 2))
    }),
    case("DQBUF of type multi-planar while streaming", |b| {
        format!("{} {}", streaming(b), dqbuf(b, 9, 2))
    }),
    case("DQBUF of memory 0 while streaming", |b| {
        format!("{} {}", streaming(b), dqbuf(b, CAPTURE, 0))
    }),
    case("DQBUF of memory MMAP while streaming", |b| {
        format!("{} {}", streaming(b), dqbuf(b, CAPTURE, 1))
    }),
    case("DQBUF after STREAMOFF", |b| {
        let on = streaming(b);
        format!("{on} {} {}", word(b.video.streamoff()), dqbuf(b, CAPTURE, 2))
    }),
    case("DQBUF of a frame, memory 0, garbage in every other field", |b| {
        let first = b.qbuf(|_| ());
        let on = word(b.video.streamon());
        let mut garbage = buffer(77, 0x1234_5678, 99);
        (garbage.memory, garbage.flags, garbage.bytesused) = (0, u32::MAX, u32::MAX);
        (garbage.request_fd, garbage.reserved2) = (9, 9);
        let got = b.show(b.video.on_buffer(command::DQBUF, garbage));
        format!("{first}; {on}; {got}; {}", b.show(b.video.querybuf(0)))
    }),
    case(
        "DQBUF of a frame, pointer unaligned and length beyond sizeimage",
        |b| {
            let first = b.qbuf(|buffer| (buffer.m, buffer.length) = (buffer.m + 17, buffer.length + 100));
            let on = word(b.video.streamon());
            format!("{first}; {on}; {}", b.show(b.video.dqbuf()))
        },
    ),
    case("DQBUF of a frame that was prepared before", |b| {
        let first = b.give(command::PREPARE_BUF, |_| ());
        let queued = b.show(b.video.qbuf(0, 0, 0));
        let on = word(b.video.streamon());
        format!(
            "{first}; {queued}; {on}; {}; {}",
            b.show(b.video.dqbuf()),
            b.show(b.video.querybuf(0))
        )
    }),
    case("QUERYBUF before REQBUFS", |b| b.show(b.video.querybuf(0))),
    case("QUERYBUF of a fresh buffer", |b| {
        format!("{} {}", word(b.video.reqbufs(2)), b.show(b.video.querybuf(1)))
    }),
    case("QUERYBUF beyond the last", |b| {
        format!("{} {}", word(b.video.reqbufs(2)), b.show(b.video.querybuf(2)))
    }),
    case("QUERYBUF of type output", |b| {
        let mut argument = buffer(0, 0, 0);
        argument.buf_type = 2;
        format!(
            "{} {}",
            word(b.video.reqbufs(2)),
            b.show(b.video.on_buffer(command::QUERYBUF, argument))
        )
    }),
    case("QUERYBUF with garbage in every other field", |b| {
        let mut garbage = buffer(0, 0x1234_5678, 99);
        (garbage.memory, garbage.flags, garbage.bytesused) = (77, u32::MAX, u32::MAX);
        (garbage.request_fd, garbage.reserved2, garbage.sequence) = (9, 9, 9);
        format!(
            "{} {}",
            word(b.video.reqbufs(2)),
            b.show(b.video.on_buffer(command::QUERYBUF, garbage))
        )
    }),
    case("STREAMON without buffers", |b| word(b.video.streamon())),
    case("STREAMON of type output", |b| {
        stream_type(b, command::STREAMON, 2)
    }),
    case("STREAMON of type 0", |b| stream_type(b, command::STREAMON, 0)),
    case("STREAMON of type multi-planar with buffers", |b| {
        format!(
            "{} {}",
            word(b.video.reqbufs(2)),
            stream_type(b, command::STREAMON, 9)
        )
    }),
    case("STREAMON twice", |b| {
        format!("{} {}", streaming(b), word(b.video.streamon()))
    }),
    case("STREAMOFF on a fresh file", |b| word(b.video.streamoff())),
    case("STREAMOFF of type output", |b| {
        stream_type(b, command::STREAMOFF, 2)
    }),
    case("STREAMOFF without STREAMON", |b| {
        format!("{} {}", word(b.video.reqbufs(2)), word(b.video.streamoff()))
    }),
    case("STREAMOFF twice", |b| {
        format!(
            "{} {} {}",
            streaming(b),
            word(b.video.streamoff()),
            word(b.video.streamoff())
        )
    }),
    case("STREAMOFF gives queued buffers back", |b| {
        let first = b.qbuf(|_| ());
        let off = word(b.video.streamoff());
        format!(
            "{first}; {off}; {}; {}",
            b.show(b.video.querybuf(0)),
            b.show(b.video.on_buffer(command::QBUF, b.good()))
        )
    }),
    case("TRY_FMT with buffers", |b| {
        format!("{} {}", word(b.video.reqbufs(2)), set_format(b, command::TRY_FMT))
    }),
    case("S_FMT with buffers", |b| {
        format!("{} {}", word(b.video.reqbufs(2)), set_format(b, command::S_FMT))
    }),
    case("S_FMT after REQBUFS 0", |b| {
        format!(
            "{} {} {}",
            word(b.video.reqbufs(2)),
            word(b.video.reqbufs(0)),
            set_format(b, command::S_FMT)
        )
    }),
    case("S_INPUT with buffers", |b| {
        format!(
            "{} {}",
            word(b.video.reqbufs(2)),
            word(sys::ioctl(&b.video, command::S_INPUT, &mut 0u32))
        )
    }),
    case("EXPBUF of a USERPTR buffer", |b| {
        let mut argument = [0u32; 16];
        argument[0] = CAPTURE;
        format!(
            "{} {}",
            word(b.video.reqbufs(2)),
            word(sys::ioctl(&b.video, command::EXPBUF, &mut argument))
        )
    }),
    case("EXPBUF on a fresh file", |b| {
        let mut argument = [0u32; 16];
        argument[0] = CAPTURE;
        word(sys::ioctl(&b.video, command::EXPBUF, &mut argument))
    }),
    case("mmap", |b| {
        format!(
            "{} {}",
            word(b.video.reqbufs(2)),
            word(sys::try_mmap(&b.video, b.size as usize))
        )
    })
    .differs("ok(2) EINVAL", "ok(2) ENODEV", "CUSE has no mmap"),
    case("write(2)", |b| {
        word(
            std::io::Write::write(&mut &b.video.0, &[0; 64])
                .map_err(|error| nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0))),
        )
    }),
];

/// `bench` owns the queue; what may a second file do?
fn second(bench: &Bench, act: impl FnOnce(&Bench) -> String) -> String {
    let owner = bench.qbuf(|_| ());
    let on = word(bench.video.streamon());
    let other = match Bench::new(bench.node) {
        Ok(other) => act(&other),
        Err(error) => error.to_string(),
    };
    // The owner notices nothing.
    format!("{owner}; {on}; {other}; {}", bench.show(bench.video.dqbuf()))
}

/// Calls on a queue that another file owns.
pub const SECOND_FILE: &[Case] = &[
    case("second file: REQBUFS", |b| {
        second(b, |o| {
            format!("{} {}", o.reqbufs(request(2)), o.reqbufs(request(0)))
        })
    }),
    case("second file: CREATE_BUFS", |b| {
        second(b, |o| format!("{} {}", o.create(1, |_| ()), o.create(0, |_| ())))
    }),
    case("second file: QBUF", |b| {
        second(b, |o| o.show(o.video.on_buffer(command::QBUF, o.good())))
    }),
    case("second file: QBUF of a bad index", |b| {
        second(b, |o| o.show(o.video.qbuf(99, 0, 0)))
    }),
    case("second file: PREPARE_BUF", |b| {
        second(b, |o| o.show(o.video.on_buffer(command::PREPARE_BUF, o.good())))
    }),
    case("second file: DQBUF", |b| second(b, |o| o.show(o.video.dqbuf()))),
    case("second file: DQBUF of type output", |b| {
        second(b, |o| dqbuf(o, 2, 2))
    }),
    case("second file: QUERYBUF of an index that there is not", |b| {
        second(b, |o| o.show(o.video.querybuf(50)))
    }),
    case("second file: STREAMON", |b| {
        second(b, |o| word(o.video.streamon()))
    }),
    case("second file: STREAMOFF", |b| {
        second(b, |o| word(o.video.streamoff()))
    }),
    case("second file: S_FMT", |b| {
        second(b, |o| set_format(o, command::S_FMT))
    }),
    case("second file: G_FMT", |b| second(b, |o| word(o.video.sizeimage()))),
    case("second file: read(2)", |b| {
        second(b, |o| {
            nonblocking(o);
            word(
                std::io::Read::read(&mut &o.video.0, &mut [0; 64])
                    .map_err(|error| nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0))),
            )
        })
    }),
    case("second file takes the queue when the first has closed", |b| {
        let first = match Bench::new(b.node) {
            Ok(first) => first.qbuf(|_| ()),
            Err(error) => error.to_string(),
        };
        format!("{first}; {}", b.qbuf(|_| ()))
    }),
    case("second file takes the queue after REQBUFS 0", |b| {
        let owner = b.qbuf(|_| ());
        let freed = b.reqbufs(request(0));
        let other = match Bench::new(b.node) {
            Ok(other) => other.qbuf(|_| ()),
            Err(error) => error.to_string(),
        };
        format!("{owner}; {freed}; {other}")
    }),
];

const fn ioc(direction: u64, magic: u8, number: u8, size: u64) -> u64 {
    direction << 30 | size << 16 | (magic as u64) << 8 | number as u64
}

/// Ioctls that do not exist.
pub const MALFORMED: &[Case] = &[
    case("'V' 250", |b| b.raw(ioc(3, b'V', 250, 88))),
    case("'V' 192, private", |b| b.raw(ioc(3, b'V', 192, 4))),
    case("'V' 1, a hole in the numbers", |b| b.raw(ioc(3, b'V', 1, 88))),
    case("'V' 255, _IO", |b| b.raw(ioc(0, b'V', 255, 0))),
    case("another magic", |b| b.raw(ioc(3, b'X', 15, 88))),
    case("a subdev's number", |b| b.raw(ioc(3, b'V', 4, 88))),
    case("media's DEVICE_INFO", |b| b.raw(ioc(3, b'|', 0, 256))),
    case("framebuffer's GET_VSCREENINFO", |b| b.raw(0x4600)),
    case("TCGETS", |b| b.raw(0x5401)),
    case("FIONREAD", |b| b.raw(0x541b)),
    case("QBUF, size 0", |b| b.raw(ioc(3, b'V', 15, 0))),
    case("QBUF, i386's size", |b| b.raw(ioc(3, b'V', 15, 68))),
    case("QBUF, one byte less", |b| b.raw(ioc(3, b'V', 15, 87))),
    case("QBUF, one byte more", |b| b.raw(ioc(3, b'V', 15, 89))),
    case("QBUF, the largest size", |b| b.raw(ioc(3, b'V', 15, 16383))),
    case("QBUF as _IO", |b| b.raw(ioc(0, b'V', 15, 88))),
    case("QBUF as _IOR", |b| b.raw(ioc(2, b'V', 15, 88))),
    case("QBUF as _IOW", |b| b.raw(ioc(1, b'V', 15, 88))),
    case("REQBUFS, size 4", |b| b.raw(ioc(3, b'V', 8, 4))),
    case("STREAMON as _IOWR", |b| b.raw(ioc(3, b'V', 18, 4))),
    case("QUERYCAP, size 0", |b| b.raw(ioc(2, b'V', 0, 0))),
    case("command 0", |b| b.raw(0)),
    case("command 0xffffffff", |b| b.raw(0xffff_ffff)),
    case("QUERYCAP with a sign-extended command", |b| {
        b.raw(0xffff_ffff_0000_0000 | command::QUERYCAP)
    }),
    case("QUERYCAP into NULL", |b| {
        word(sys::ioctl_null(&b.video, command::QUERYCAP))
    }),
    case("REQBUFS at NULL", |b| {
        word(sys::ioctl_null(&b.video, command::REQBUFS))
    }),
    case("QBUF at NULL", |b| word(sys::ioctl_null(&b.video, command::QBUF))),
    case("STREAMON at NULL", |b| {
        word(sys::ioctl_null(&b.video, command::STREAMON))
    }),
    case("QUERYCAP into read-only memory", |b| {
        in_read_only(b, command::QUERYCAP, &[])
    }),
    case("QUERYBUF in read-only memory", |b| {
        let mut argument = vec![0; 88];
        argument[4] = 1;
        format!(
            "{} {}",
            word(b.video.reqbufs(2)),
            in_read_only(b, command::QUERYBUF, &argument)
        )
    }),
    case("an unknown ioctl at NULL", |b| {
        word(sys::ioctl_null(&b.video, ioc(3, b'V', 250, 88)))
    }),
    case("G_FMT, type 0", |b| b.raw(command::G_FMT)),
    case("G_FMT, type overlay", |b| typed(b, command::G_FMT, 3)),
    case("S_FMT, type overlay", |b| typed(b, command::S_FMT, 3)),
    case("S_FMT, type output", |b| typed(b, command::S_FMT, 2)),
    case("S_PARM, type output", |b| {
        let mut argument = [0u32; 51];
        argument[0] = 2;
        word(sys::ioctl(&b.video, command::S_PARM, &mut argument))
    }),
];

fn typed(bench: &Bench, command: u64, buf_type: u32) -> String {
    let mut format = V4l2Format::new_zeroed();
    format.buf_type = buf_type;
    word(sys::ioctl(&bench.video, command, &mut format))
}

fn in_read_only(bench: &Bench, command: u64, argument: &[u8]) -> String {
    let play = || -> anyhow::Result<String> {
        let pages = Pages::new(PAGE)?;
        pages.write(0, argument)?;
        pages.protect(0, PAGE, Access::ReadOnly)?;
        let outcome = word(sys::ioctl_in(&bench.video, command, &pages, 0));
        Ok(format!(
            "{outcome}, untouched: {}",
            pages.read(0, argument.len())? == argument
        ))
    };
    play().unwrap_or_else(|error| error.to_string())
}

impl Bench {
    /// The number of an open fd that is no request.
    fn any_fd(&self) -> u32 {
        self.video.0.as_raw_fd().cast_unsigned()
    }
}
