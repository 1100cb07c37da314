//! Unrestricted ioctls: a round that asks for memory, and the one that has it.

use polyfuse_kernel::{CUSE_INIT, CUSE_UNRESTRICTED_IOCTL, FUSE_IOCTL, FUSE_IOCTL_RETRY};
use polyfuse_kernel::{cuse_init_in, cuse_init_out, fuse_ioctl_in, fuse_ioctl_iovec, fuse_ioctl_out};
use zerocopy::FromBytes;

use super::{Served, pair};
use crate::cuse::{ClientArea, MAX_AREAS, NodeSpec, Operation, Request, Turn, initialize};

const OUT: usize = size_of::<fuse_ioctl_out>();

fn area(client_addr: u64, length: u64) -> ClientArea {
    ClientArea { client_addr, length }
}

fn asking(input: Vec<ClientArea>, output: Vec<ClientArea>) -> impl FnOnce(Request<'_>, &Turn<'_>) + Send {
    move |request, _| {
        let Operation::Ioctl(ioctl) = request.operation else {
            panic!("an IOCTL")
        };
        assert!(ioctl.input.is_empty() && ioctl.out_size == 0);
        ioctl.reply.retry(&input, &output);
    }
}

#[test]
fn the_handshake_says_that_a_node_is_unrestricted() {
    let (kernel, channel) = pair();
    let init = cuse_init_in {
        major: 7,
        minor: 41,
        unused: 0,
        flags: 1,
    };
    kernel.send(CUSE_INIT, 2, &init, &[]);
    let node = NodeSpec {
        name: "fb64".into(),
        major: 29,
        minor: 256,
        unrestricted: true,
    };
    initialize(&channel, &node).expect("a handshake");
    let out: cuse_init_out = kernel.answer().body();
    assert_eq!(out.flags, CUSE_UNRESTRICTED_IOCTL);
    assert!(out.minor >= 16, "vectors of 64 bits");
}

#[test]
fn areas_are_asked_for_and_come_with_the_next_round() {
    let served = Served::new();
    served.next(asking(
        vec![area(0x7ffd_0000_1000, 40), area(0x1000, 512)],
        vec![area(u64::MAX, 3)],
    ));
    let first = fuse_ioctl_in {
        fh: 1,
        cmd: 0x4605,
        arg: 0x7ffd_0000_1000,
        ..fuse_ioctl_in::default()
    };
    served.kernel.send(FUSE_IOCTL, 2, &first, &[]);
    let answer = served.kernel.answer();
    let out: fuse_ioctl_out = answer.body();
    assert_eq!((answer.error, out.result, out.flags), (0, 0, FUSE_IOCTL_RETRY));
    assert_eq!((out.in_iovs, out.out_iovs), (2, 1));
    let vectors = <[fuse_ioctl_iovec]>::ref_from_bytes(&answer.payload[OUT..]).expect("whole vectors");
    let vectors: Vec<_> = vectors.iter().map(|vector| (vector.base, vector.len)).collect();
    assert_eq!(vectors, [(0x7ffd_0000_1000, 40), (0x1000, 512), (u64::MAX, 3)]);

    served.next(|request, _| {
        let Operation::Ioctl(ioctl) = request.operation else {
            panic!("an IOCTL")
        };
        assert_eq!((ioctl.input.len(), ioctl.out_size), (552, 3));
        assert_eq!(ioctl.client_arg, 0x7ffd_0000_1000);
        ioctl.reply.result(0, b"out");
    });
    let second = fuse_ioctl_in {
        in_size: 552,
        out_size: 3,
        ..first
    };
    served.kernel.send(FUSE_IOCTL, 4, &second, &[7; 552]);
    let answer = served.kernel.answer();
    assert_eq!((answer.unique, &answer.payload[OUT..]), (4, &b"out"[..]));
    served.end();
}

#[test]
fn more_than_the_kernel_takes_is_enomem_and_as_much_as_it_takes_is_not() {
    let many = |count| vec![area(0, 1); count];
    let cases = [
        (vec![area(0, 131_072)], vec![area(0, 131_072)], true),
        (vec![area(0, 131_073)], vec![], false),
        (vec![], vec![area(0, 131_072), area(0, 1)], false),
        (vec![area(0, u64::MAX), area(0, 2)], vec![], false),
        (many(MAX_AREAS - 1), many(1), true),
        (many(MAX_AREAS), many(1), false),
        (vec![], vec![], true),
    ];
    let served = Served::new();
    for (input, output, fits) in cases {
        let counts = (input.len(), output.len());
        served.next(asking(input, output));
        served.kernel.send(FUSE_IOCTL, 2, &fuse_ioctl_in::default(), &[]);
        let answer = served.kernel.answer();
        let out: fuse_ioctl_out = answer.body();
        if fits {
            assert_eq!(out.flags, FUSE_IOCTL_RETRY);
            assert_eq!((out.in_iovs as usize, out.out_iovs as usize), counts);
            assert_eq!(answer.payload.len(), OUT + (counts.0 + counts.1) * 16);
        } else {
            assert_eq!((answer.error, out.result, out.flags), (0, -libc::ENOMEM, 0));
            assert_eq!(answer.payload.len(), OUT);
        }
    }
    served.end();
}
