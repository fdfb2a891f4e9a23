//! Faults for tests, of a build with the feature `planted-faults`: processes that fork. Never in the product.

use std::io;
use std::time::Duration;

/// Makes `count` processes whose parent dies before they do, so that PID 1 inherits and reaps them.
///
/// # Errors
/// What fork(2) and pipe2(2) say.
pub fn make_orphans(count: u32) -> io::Result<()> {
    let mut gate = [0; 2];
    // SAFETY: pipe2 writes two numbers into the array.
    if unsafe { libc::pipe2(gate.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this process has one thread; the children call only async-signal-safe functions and end with _exit.
    let parent = unsafe { libc::fork() };
    if parent == 0 {
        for _ in 0..count {
            // SAFETY: as above.
            unsafe {
                if libc::fork() == 0 {
                    // Waits until nobody holds the writing end: its parent is dead then.
                    libc::close(gate[1]);
                    let mut byte = 0u8;
                    libc::read(gate[0], (&raw mut byte).cast(), 1);
                    libc::_exit(0);
                }
            }
        }
        // SAFETY: ends this child.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: both numbers were made above; waitpid takes no memory.
    unsafe {
        if parent > 0 {
            libc::waitpid(parent, std::ptr::null_mut(), 0);
        }
        libc::close(gate[0]);
        libc::close(gate[1]);
    }
    if parent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Forks processes that stay, again and again, and goes on when the kernel refuses.
pub fn fork_without_end() -> ! {
    loop {
        // SAFETY: this process has one thread, and the child does nothing but wait.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: takes no memory.
                unsafe { libc::pause() };
            },
            -1 => std::thread::sleep(Duration::from_millis(1)),
            _ => {}
        }
    }
}
