//! The guest programs, in WebAssembly text.

/// A preview1 module; its first argument says what it does:
/// `fail` (writes out and err, exits with 1), `sleep`, `write` and `read` (the file `note` of its first mount),
/// `trap`, `grow` (takes memory until it gets no more, then traps).
pub const WORKER: &str = r#"
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 256) "out\n")
  (data (i32.const 264) "err\n")
  (data (i32.const 272) "note")
  (data (i32.const 280) "shared\n")
  (func $print (param $fd i32) (param $text i32) (param $length i32)
    (i32.store (i32.const 16) (local.get $text))
    (i32.store (i32.const 20) (local.get $length))
    (drop (call $fd_write (local.get $fd) (i32.const 16) (i32.const 1) (i32.const 24))))
  (func $open (param $flags i32) (result i32)
    (if (call $path_open (i32.const 3) (i32.const 0) (i32.const 272) (i32.const 4) (local.get $flags)
          (i64.const 0x1fffffff) (i64.const 0x1fffffff) (i32.const 0) (i32.const 8))
      (then (call $proc_exit (i32.const 1))))
    (i32.load (i32.const 8)))
  (func (export "_start") (local $what i32) (local $fd i32)
    (drop (call $args_sizes_get (i32.const 0) (i32.const 4)))
    (if (i32.lt_u (i32.load (i32.const 0)) (i32.const 2)) (then (unreachable)))
    (drop (call $args_get (i32.const 1024) (i32.const 2048)))
    (local.set $what (i32.load8_u (i32.load (i32.const 1028))))
    (if (i32.eq (local.get $what) (i32.const 0x66)) (then ;; f
      (call $print (i32.const 1) (i32.const 256) (i32.const 4))
      (call $print (i32.const 2) (i32.const 264) (i32.const 4))
      (call $proc_exit (i32.const 1))))
    (if (i32.eq (local.get $what) (i32.const 0x73)) (then ;; s
      (i64.store (i32.const 512) (i64.const 0))
      (i32.store8 (i32.const 520) (i32.const 0))
      (i32.store (i32.const 528) (i32.const 1))
      (i64.store (i32.const 536) (i64.const 3600000000000))
      (loop $again
        (drop (call $poll_oneoff (i32.const 512) (i32.const 600) (i32.const 1) (i32.const 700)))
        (br $again))))
    (if (i32.eq (local.get $what) (i32.const 0x77)) (then ;; w
      (local.set $fd (call $open (i32.const 9)))
      (call $print (local.get $fd) (i32.const 280) (i32.const 7))
      (return)))
    (if (i32.eq (local.get $what) (i32.const 0x72)) (then ;; r
      (local.set $fd (call $open (i32.const 0)))
      (i32.store (i32.const 16) (i32.const 800))
      (i32.store (i32.const 20) (i32.const 64))
      (if (call $fd_read (local.get $fd) (i32.const 16) (i32.const 1) (i32.const 24))
        (then (call $proc_exit (i32.const 1))))
      (call $print (i32.const 1) (i32.const 800) (i32.load (i32.const 24)))
      (return)))
    (if (i32.eq (local.get $what) (i32.const 0x67)) (then ;; g
      (loop $more
        (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))))
    (unreachable)))
"#;

/// A command that imports what no host has.
pub const DEMANDING: &str = r#"
(component
  (import "example:absent/oracle@1.0.0" (instance (export "ask" (func))))
  (core module $m (func (export "run") (result i32) i32.const 0))
  (core instance $i (instantiate $m))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $runs (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $runs))
)
"#;

/// Text to binary.
pub fn wasm(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}
