//! The system calls of a host process of one pod: what running guests takes, and nothing else.
//!
//! Three filters lie on each other and the strictest answer counts. What is not on the list fails with EPERM; what such a
//! process never has a reason for (another program, another namespace, another process's memory) ends it. `clone3` fails
//! with ENOSYS, because its arguments cannot be looked at: the C library then takes `clone`.

use std::collections::BTreeMap;

use anyhow::Context;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Allowed with any arguments.
#[rustfmt::skip]
const ALLOWED: &[libc::c_long] = &[
    // Memory.
    libc::SYS_brk, libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_mprotect, libc::SYS_madvise,
    libc::SYS_membarrier, libc::SYS_memfd_create, libc::SYS_mincore, libc::SYS_msync,
    // Threads, their signals and clocks. What `clone` may do is below; `clone3` never gets here.
    libc::SYS_clone3, libc::SYS_futex, libc::SYS_set_robust_list, libc::SYS_get_robust_list, libc::SYS_rseq,
    libc::SYS_set_tid_address, libc::SYS_gettid, libc::SYS_getpid, libc::SYS_getppid, libc::SYS_exit,
    libc::SYS_exit_group, libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler, libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_clock_gettime,
    libc::SYS_clock_getres, libc::SYS_gettimeofday, libc::SYS_restart_syscall, libc::SYS_tgkill,
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sigaltstack,
    libc::SYS_getcpu, libc::SYS_getrusage, libc::SYS_getrandom, libc::SYS_uname, libc::SYS_sysinfo,
    libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid,
    // Files: which ones is decided by the preopened directories of the pod.
    libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64, libc::SYS_pwrite64,
    libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_preadv2, libc::SYS_pwritev2, libc::SYS_openat,
    libc::SYS_openat2, libc::SYS_close, libc::SYS_lseek, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx,
    libc::SYS_statfs, libc::SYS_fstatfs, libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_ftruncate,
    libc::SYS_fallocate, libc::SYS_fadvise64, libc::SYS_getdents64, libc::SYS_getcwd, libc::SYS_mkdirat,
    libc::SYS_unlinkat, libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_linkat, libc::SYS_symlinkat,
    libc::SYS_readlinkat, libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_utimensat, libc::SYS_faccessat,
    libc::SYS_faccessat2, libc::SYS_fcntl, libc::SYS_flock, libc::SYS_dup, libc::SYS_dup3, libc::SYS_pipe2,
    libc::SYS_copy_file_range, libc::SYS_sendfile, libc::SYS_umask,
    // Sockets and waiting.
    libc::SYS_socketpair, libc::SYS_bind, libc::SYS_listen, libc::SYS_accept, libc::SYS_accept4,
    libc::SYS_connect, libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_getsockopt, libc::SYS_setsockopt,
    libc::SYS_shutdown, libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_sendmsg, libc::SYS_recvmsg,
    libc::SYS_sendmmsg, libc::SYS_recvmmsg, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2, libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_eventfd2, libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
];

/// The older names of some of them.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLDER: &[libc::c_long] = &[
    libc::SYS_open, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_poll, libc::SYS_epoll_wait,
    libc::SYS_pipe, libc::SYS_mkdir, libc::SYS_unlink, libc::SYS_rmdir, libc::SYS_rename, libc::SYS_link,
    libc::SYS_symlink, libc::SYS_readlink, libc::SYS_chmod, libc::SYS_dup2, libc::SYS_time, libc::SYS_getrlimit,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// Nothing that this process does leads here: who comes here has broken out of a guest.
#[rustfmt::skip]
const FATAL: &[libc::c_long] = &[
    libc::SYS_execve, libc::SYS_execveat, libc::SYS_ptrace, libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev, libc::SYS_bpf, libc::SYS_init_module, libc::SYS_finit_module,
    libc::SYS_delete_module, libc::SYS_kexec_load, libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root,
    libc::SYS_chroot, libc::SYS_setns, libc::SYS_unshare, libc::SYS_reboot, libc::SYS_swapon,
];

/// `PAGEMAP_SCAN`, by which the engine finds the pages that a guest has touched.
const PAGEMAP_SCAN: u64 = 0xc060_6610;
/// `PR_SET_VMA`, by which allocators name their mappings.
const PR_SET_VMA: u64 = 0x5356_4d41;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Confines every thread of this process, and those to come, for good.
///
/// # Errors
/// Where the kernel has no seccomp filters.
pub(super) fn confine() -> anyhow::Result<()> {
    for program in programs()? {
        seccompiler::apply_filter_all_threads(&program).context("installing a filter of system calls")?;
    }
    Ok(())
}

/// The filters in the order in which they are installed: the list of what is allowed keeps further ones out.
fn programs() -> anyhow::Result<Vec<BpfProgram>> {
    let refused = |errno: i32| SeccompAction::Errno(errno.unsigned_abs());
    let fatal: Rules = FATAL.iter().map(|call| (*call, Vec::new())).collect();
    let unknown: Rules = [(libc::SYS_clone3, Vec::new())].into();
    [
        (unknown, SeccompAction::Allow, refused(libc::ENOSYS)),
        (fatal, SeccompAction::Allow, SeccompAction::KillProcess),
        (allowed()?, refused(libc::EPERM), SeccompAction::Allow),
    ]
    .into_iter()
    .map(|(rules, otherwise, listed)| {
        let arch = std::env::consts::ARCH.try_into().context("this processor has no filters")?;
        let filter = SeccompFilter::new(rules, otherwise, listed, arch)?;
        Ok(filter.try_into()?)
    })
    .collect()
}

fn allowed() -> anyhow::Result<Rules> {
    use SeccompCmpOp::{Eq, MaskedEq};
    let mut rules: Rules = ALLOWED.iter().chain(OLDER).map(|call| (*call, Vec::new())).collect();
    let mut only = |call: libc::c_long, argument: u8, comparisons: Vec<(SeccompCmpOp, u64)>| {
        let rule = |(op, value): (SeccompCmpOp, u64)| {
            SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)?])
        };
        let made = comparisons.into_iter().map(rule).collect::<Result<Vec<_>, _>>()?;
        rules.insert(call, made);
        anyhow::Ok(())
    };
    let equal = |values: &[u64]| values.iter().map(|v| (Eq, *v)).collect::<Vec<_>>();
    let constants =
        |values: &[i32]| equal(&values.iter().map(|v| u64::from(v.unsigned_abs())).collect::<Vec<_>>());
    // Threads, not processes.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    only(libc::SYS_clone, 0, vec![(MaskedEq(thread), thread)])?;
    only(libc::SYS_socket, 0, constants(&[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6]))?;
    only(
        libc::SYS_ioctl,
        1,
        equal(&[libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::TCGETS, PAGEMAP_SCAN]),
    )?;
    let names = [libc::PR_SET_NAME, libc::PR_GET_NAME].map(|v| u64::from(v.unsigned_abs()));
    only(libc::SYS_prctl, 0, equal(&[names[0], names[1], PR_SET_VMA]))?;
    // Limits of its own.
    only(libc::SYS_prlimit64, 0, equal(&[0]))?;
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    /// Says what the child of the tests does: it is this test binary again.
    const CHILD: &str = "CORACLE_CONFINED_CHILD";

    fn child(what: &str) -> std::process::Output {
        let test = "host::confine::tests::confined_child";
        let me = std::env::current_exe().unwrap();
        Command::new(me).args(["--exact", test, "--nocapture"]).env(CHILD, what).output().unwrap()
    }

    /// Does nothing unless it is started by the tests below.
    #[test]
    fn confined_child() {
        let Ok(what) = std::env::var(CHILD) else { return };
        let before = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        // A thread that was there before is confined too.
        let old = std::thread::spawn(move || {
            let _ = before.1.recv();
            tell.send(nix::unistd::setgid(nix::unistd::getgid())).unwrap();
        });
        confine().unwrap();
        match what.as_str() {
            "exec" => drop(nix::unistd::execv(c"/bin/true", &[c"true"])),
            "namespace" => drop(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)),
            _ => {
                drop(before.0);
                old.join().unwrap();
                assert_eq!(told.recv().unwrap(), Err(nix::errno::Errno::EPERM));
                // SAFETY: plain system calls with constant arguments.
                let fork = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
                assert_eq!((fork, nix::errno::Errno::last()), (-1, nix::errno::Errno::EPERM));
                // SAFETY: as above.
                let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
                assert_eq!((raw, nix::errno::Errno::last()), (-1, nix::errno::Errno::EPERM));
                assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7, "threads can be made");
                std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                println!("all of it");
            }
        }
    }

    #[test]
    fn what_is_not_on_the_list_fails_and_the_rest_works() {
        let out = child("list");
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success() && said.contains("all of it"), "{}: {said}", out.status);
    }

    #[test]
    fn another_program_or_namespace_ends_the_process() {
        for what in ["exec", "namespace"] {
            let out = child(what);
            assert_eq!(out.status.signal(), Some(libc::SIGSYS), "{what}: {out:?}");
        }
    }
}
