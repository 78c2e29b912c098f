package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/test/sandbox"
)

const (
	sleepRounds = 32 // n, of each
	sleepWarmUp = 2  // more rounds, not counted
)

// sleeps are the times of sleeps and wakes of one size.
type sleeps struct {
	ended     sample // POST sleep until the process has ended
	asleep    sample // POST sleep until its response
	durable   sample // from the response until the memory is on disk
	awake     sample // POST wake, memory in RAM, until its response
	exec      sample // POST wake, memory in RAM, until a command was run
	cold      sample // POST wake, memory on disk, until a command was run
	bareEnded sample // sleep of a bare QEMU until it has ended
	bareAwake sample // its wake until its CPUs run
	bareExec  sample // its wake until a command was run
}

// measureSleeps puts guests to sleep and wakes them, with hatchd and a bare QEMU.
func measureSleeps(out io.Writer, d *sandbox.Daemon) error {
	return eachSize(out, d, func() measurement { return &sleeps{} })
}

// measure alternates between hatchd and a bare QEMU.
func (s *sleeps) measure(ctx context.Context, t trial) error {
	return repeat(sleepWarmUp, sleepRounds, func() { *s = sleeps{} }, func() error {
		return errors.Join(s.round(ctx, t.c, t.vm), s.bareRound(ctx, t.qemu))
	})
}

// round puts the VM to sleep and wakes it, from RAM and from disk.
func (s *sleeps) round(ctx context.Context, c *client.Client, id string) error {
	if err := s.sleep(ctx, c, id); err != nil {
		return err
	}
	began := time.Now()
	if _, err := c.WakeVM(ctx, id); err != nil {
		return err
	}
	s.awake = append(s.awake, time.Since(began))
	if err := runTrue(ctx, c, id); err != nil {
		return err
	}
	s.exec = append(s.exec, time.Since(began))
	if err := s.sleep(ctx, c, id); err != nil {
		return err
	}
	if err := s.awaitDurable(ctx, c, id); err != nil {
		return err
	}
	began = time.Now()
	if _, err := c.WakeVM(ctx, id); err != nil {
		return err
	}
	if err := runTrue(ctx, c, id); err != nil {
		return err
	}
	s.cold = append(s.cold, time.Since(began))
	return nil
}

func (s *sleeps) sleep(ctx context.Context, c *client.Client, id string) error {
	vmm, err := findVMM(id)
	if err != nil {
		return err
	}
	gone := vmm.watch()
	began := time.Now()
	if _, err := c.SleepVM(ctx, id); err != nil {
		return err
	}
	s.asleep = append(s.asleep, time.Since(began))
	s.ended = append(s.ended, (<-gone).Sub(began))
	return nil
}

func (s *sleeps) awaitDurable(ctx context.Context, c *client.Client, id string) error {
	began := time.Now()
	err := sandbox.Poll(benchLimit, func() (bool, error) {
		v, err := c.GetVM(ctx, id)
		return err == nil && v.Sleep != nil && v.Sleep.Durable, err
	})
	if err != nil {
		return err
	}
	s.durable = append(s.durable, time.Since(began))
	return nil
}

func runTrue(ctx context.Context, c *client.Client, id string) error {
	return runThrough(ctx, c, id, api.Command{Argv: []string{"/bin/true"}})
}

// runThrough runs a command through hatchd, which must succeed.
func runThrough(ctx context.Context, c *client.Client, id string, command api.Command) error {
	result, err := c.RunExec(ctx, id, api.RunExec{Command: command})
	if err == nil && result.ExitCode != 0 {
		err = fmt.Errorf("cannot run a command: %+v", result)
	}
	return err
}

func (s *sleeps) bareRound(ctx context.Context, qemu *sleeper) error {
	took, err := qemu.sleep()
	if err != nil {
		return fmt.Errorf("cannot save a bare QEMU: %w", err)
	}
	s.bareEnded = append(s.bareEnded, took)
	awake, answered, err := qemu.wake(ctx)
	if err != nil {
		return fmt.Errorf("cannot wake a bare QEMU: %w", err)
	}
	s.bareAwake, s.bareExec = append(s.bareAwake, awake), append(s.bareExec, answered)
	return nil
}

// sleeper is a bare QEMU that sleeps and wakes.
type sleeper struct {
	*bare
	cmd     *exec.Cmd
	control *qmp
	tap     *os.File // that QEMU inherits; nil without a network
}

func (h *sleeper) start(ctx context.Context, more ...string) (err error) {
	args := append(slices.Clone(h.args), more...)
	if i := slices.Index(args, "-name"); i >= 0 {
		args[i+1] = "bare" // findVMM must not take it for the VM's
	}
	if err := h.renewTAP(); err != nil {
		return err
	}
	h.cmd = exec.CommandContext(ctx, h.program, args...)
	h.cmd.ExtraFiles = h.files
	if err := h.cmd.Start(); err != nil {
		return err
	}
	if h.tap != nil {
		_ = h.tap.Close() // as under hatchd only QEMU has it, so that the TAP ends with QEMU
	}
	h.control, err = dialQMP(filepath.Join(h.dir, "qmp"))
	return err
}

// renewTAP replaces the TAP that ended with QEMU.
func (h *sleeper) renewTAP() error {
	for _, arg := range h.args {
		m := tap.FindStringSubmatch(arg)
		if m == nil {
			continue
		}
		_ = h.file(m[1]).Close()
		fresh, err := openTAP()
		if err != nil {
			return err
		}
		h.put(m[1], fresh)
		h.tap = fresh
	}
	return nil
}

// kill kills QEMU, if it runs, and waits for its end.
func (h *sleeper) kill() {
	if h.cmd == nil {
		return
	}
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait() // it was killed
	if h.control != nil {
		_ = h.control.close()
	}
	h.cmd, h.control = nil, nil
}

func (h *sleeper) boot(ctx context.Context) error {
	if err := h.start(ctx); err != nil {
		return err
	}
	return h.runTrue(ctx)
}

// sleep saves the devices, and returns the time until QEMU has ended.
func (h *sleeper) sleep() (time.Duration, error) {
	began := time.Now()
	devices, err := os.Create(filepath.Join(h.dir, "devices"))
	if err != nil {
		return 0, err
	}
	defer func() { _ = devices.Close() }()
	if err := h.control.do("stop", nil, nil); err != nil {
		return 0, err
	}
	if err := h.control.move("migrate", devices, false); err != nil {
		return 0, err
	}
	h.kill()
	return time.Since(began), nil
}

// wake loads the devices, and returns the times until the CPUs run, and until a
// command was run.
func (h *sleeper) wake(ctx context.Context) (awake, answered time.Duration, err error) {
	return h.startFrom(ctx, filepath.Join(h.dir, "devices"), false)
}

// startFrom starts QEMU from saved devices, with their memory if all is set.
func (h *sleeper) startFrom(ctx context.Context, path string, all bool) (awake, answered time.Duration, err error) {
	began := time.Now()
	if err := h.resume(ctx, path, all); err != nil {
		return 0, 0, err
	}
	awake = time.Since(began)
	err = h.runTrue(ctx)
	return awake, time.Since(began), err
}

// resume starts QEMU as startFrom does, until its CPUs run.
func (h *sleeper) resume(ctx context.Context, path string, all bool) error {
	saved, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = saved.Close() }()
	if err := h.start(ctx, "-incoming", "defer"); err != nil {
		return err
	}
	if err := h.control.move("migrate-incoming", saved, all); err != nil {
		return err
	}
	return h.control.do("cont", nil, nil)
}

// runTrue opens a session with the agent and runs a command.
func (h *sleeper) runTrue(ctx context.Context) error {
	session, err := h.session(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	return runIn(ctx, session, wire.ProcessSpec{Argv: []string{"/bin/true"}})
}

// runIn runs a command, which must succeed, and removes its process.
func runIn(ctx context.Context, session *wire.Client, spec wire.ProcessSpec) error {
	spec.ID = benchProcess
	_, stream, err := session.Exec(ctx, spec)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	exit, err := untilExit(stream)
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("a command in the guest has failed: %+v", exit)
	}
	return errors.Join(err, session.RemoveProcess(ctx, benchProcess))
}

func (s *sleeps) print(out io.Writer, mem int) {
	fmt.Fprintf(out, "\nsleep and wake of the minimal image, %d MiB, against a bare QEMU, in turn\n", mem)
	fmt.Fprintf(out, "  sleep, until the VMM has ended           %s\n", s.ended.tail())
	fmt.Fprintf(out, "    bare QEMU                              %s\n", s.bareEnded.tail())
	fmt.Fprintf(out, "    ratio of the medians                   %.2f\n", ratio(s.ended, s.bareEnded))
	fmt.Fprintf(out, "  sleep, until the response                %s\n", s.asleep.tail())
	fmt.Fprintf(out, "  from then until the memory is on disk    %s\n", s.durable.tail())
	fmt.Fprintf(out, "  wake from RAM, until the response        %s\n", s.awake.tail())
	fmt.Fprintf(out, "    bare QEMU, until its CPUs run          %s\n", s.bareAwake.tail())
	fmt.Fprintf(out, "  wake from RAM, until a command was run   %s\n", s.exec.tail())
	fmt.Fprintf(out, "  wake from disk, until a command was run  %s\n", s.cold.tail())
	fmt.Fprintf(out, "    bare QEMU                              %s\n", s.bareExec.tail())
	fmt.Fprintf(out, "    ratio of the medians, RAM and disk     %.2f, %.2f\n", ratio(s.exec, s.bareExec), ratio(s.cold, s.bareExec))
}
