//go:build linux && amd64 && system

package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// debugger makes calls inside a running process, as code that an attacker has brought
// into it would. All of it happens on one thread, which ptrace demands.
type debugger struct {
	pid     int
	memory  *os.File
	scratch uint64            // where arguments may be written: its stack, below what it uses
	code    map[string]uint64 // addresses of the instructions that make calls, by their bytes
	saved   unix.PtraceRegs
	calls   chan func()
}

// Instructions that call the kernel.
const (
	syscall64 = "\x0f\x05" // syscall
	syscall32 = "\xcd\x80" // int 0x80
)

// debug stops the main thread of a process until the end of the test.
func debug(t *testing.T, pid int) *debugger {
	t.Helper()
	d := &debugger{pid: pid, code: map[string]uint64{}, calls: make(chan func())}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		for call := range d.calls {
			call()
		}
	}()
	err := d.do(d.attach)
	t.Cleanup(func() {
		_ = d.do(d.detach) // the process may have ended
		close(d.calls)
		<-ended
	})
	if err != nil {
		t.Fatalf("cannot debug process %d: %v", pid, err)
	}
	return d
}

// do runs f on the debugger's thread.
func (d *debugger) do(f func() error) error {
	done := make(chan error)
	d.calls <- func() { done <- f() }
	return <-done
}

func (d *debugger) attach() error {
	if err := unix.PtraceAttach(d.pid); err != nil {
		return err
	}
	if _, err := d.wait(); err != nil {
		return err
	}
	if err := unix.PtraceGetRegs(d.pid, &d.saved); err != nil {
		return err
	}
	d.scratch = (d.saved.Rsp - 4<<10) &^ 4095
	var err error
	if d.memory, err = os.OpenFile(fmt.Sprintf("/proc/%d/mem", d.pid), os.O_RDWR, 0); err != nil {
		return err
	}
	return d.findCode()
}

// findCode finds the instructions in the process's own code.
func (d *debugger) findCode() error {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", d.pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil {
			return err
		}
		if mode != "r-xp" || strings.Contains(line, "[v") { // the kernel's own pages
			continue
		}
		code := make([]byte, to-from)
		if _, err := d.memory.ReadAt(code, int64(from)); err != nil {
			return err
		}
		for _, instruction := range []string{syscall64, syscall32} {
			if at := bytes.Index(code, []byte(instruction)); at >= 0 && d.code[instruction] == 0 {
				d.code[instruction] = from + uint64(at)
			}
		}
	}
	if len(d.code) != 2 {
		return fmt.Errorf("found only %d of the instructions that call the kernel", len(d.code))
	}
	return nil
}

// errEnded says that a call ended the process.
var errEnded = errors.New("the process has ended")

// wait waits until the process stops. It leaves the status of a process that has ended
// to the process's owner.
func (d *debugger) wait() (unix.Signal, error) {
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, d.pid, &info, unix.WEXITED|unix.WSTOPPED|unix.WNOWAIT, nil); errors.Is(err, unix.ECHILD) {
		return 0, errEnded
	} else if err != nil {
		return 0, err
	}
	const trapped, stopped = 4, 5 // CLD_TRAPPED, CLD_STOPPED
	if info.Code != trapped && info.Code != stopped {
		return 0, errEnded
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(d.pid, &status, unix.WUNTRACED, nil); err != nil {
		return 0, err
	}
	return status.StopSignal(), nil
}

func (d *debugger) detach() error {
	err := errors.Join(unix.PtraceSetRegs(d.pid, &d.saved), unix.PtraceDetach(d.pid))
	return errors.Join(err, d.memory.Close())
}

// call makes a call in the process. Arguments are numbers, or strings, whose addresses
// are passed. Error: errEnded, or the call's own.
func (d *debugger) call(instruction string, number uint64, args ...any) (result uint64, err error) {
	err = d.do(func() error {
		result, err = d.callHere(instruction, number, args)
		return err
	})
	return result, err
}

func (d *debugger) callHere(instruction string, number uint64, args []any) (uint64, error) {
	var values [6]uint64
	next := d.scratch
	for i, arg := range args {
		switch arg := arg.(type) {
		case int:
			values[i] = uint64(arg)
		case string:
			if _, err := d.memory.WriteAt([]byte(arg+"\x00"), int64(next)); err != nil {
				return 0, err
			}
			values[i] = next
			next += uint64(len(arg)+16) &^ 15
		default:
			return 0, fmt.Errorf("argument %d is a %T", i, arg)
		}
	}
	regs := d.saved
	regs.Rip, regs.Rax, regs.Orig_rax = d.code[instruction], number, ^uint64(0)
	if instruction == syscall64 {
		regs.Rdi, regs.Rsi, regs.Rdx, regs.R10, regs.R8, regs.R9 = values[0], values[1], values[2], values[3], values[4], values[5]
	} else {
		regs.Rbx, regs.Rcx, regs.Rdx, regs.Rsi, regs.Rdi, regs.Rbp = values[0], values[1], values[2], values[3], values[4], values[5]
	}
	if err := unix.PtraceSetRegs(d.pid, &regs); err != nil {
		return 0, err
	}
	for range 10 { // signals may come before the instruction is executed
		if err := unix.PtraceSingleStep(d.pid); err != nil {
			return 0, err
		}
		signal, err := d.wait()
		if err != nil {
			return 0, err
		}
		var now unix.PtraceRegs
		if err := unix.PtraceGetRegs(d.pid, &now); err != nil {
			return 0, err
		}
		if signal == unix.SIGTRAP && now.Rip == regs.Rip+2 {
			if errno := -int64(now.Rax); errno > 0 && errno < 4096 {
				return 0, unix.Errno(errno)
			}
			return now.Rax, nil
		}
	}
	return 0, errors.New("the call does not return")
}
