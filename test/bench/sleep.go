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

// sleepSizes are the guests' memory in MiB.
var sleepSizes = []int{256, 2048}

// sleeps is what was measured of sleeps and wakes of one size.
type sleeps struct {
	gone    sample // POST sleep until the process is gone
	asleep  sample // the same until it answers
	durable sample // from the answer until the memory is on disk
	awake   sample // POST wake, memory in RAM, until it answers
	exec    sample // the same until the first command has been run
	cold    sample // POST wake, memory on disk, until the first command has been run
	bareOff sample // the same of a bare QEMU, until it is gone
	bareOn  sample // until its CPUs run
	bareRun sample // until the first command has been run
}

// measureSleeps puts guests to sleep and wakes them, through hatchd and by hand.
func measureSleeps(out io.Writer, d *sandbox.Daemon) error {
	return eachSize(d, func(ctx context.Context, c *client.Client, mem int) error {
		var s sleeps
		err := s.measure(ctx, c, d.DataDir, mem)
		if err == nil {
			s.print(out, mem)
		}
		return err
	})
}

// eachSize measures with guests of the minimal image, of each of sleepSizes.
func eachSize(d *sandbox.Daemon, measure func(ctx context.Context, c *client.Client, mem int) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	c, err := d.Client()
	if err != nil {
		return err
	}
	if err := build(c, "minimal"); err != nil {
		return err
	}
	for _, mem := range sleepSizes {
		if err := measure(ctx, c, mem); err != nil {
			return err
		}
	}
	return nil
}

// runMinimal makes a VM of the minimal image, and what is needed to do the same
// by hand; the caller closes that.
func runMinimal(ctx context.Context, c *client.Client, dataDir string, mem int) (api.VM, *bare, error) {
	image, err := c.GetImage(ctx, benchImage)
	if err != nil {
		return api.VM{}, nil, err
	}
	v, err := c.CreateVM(ctx, api.CreateVM{ImageID: benchImage, MemMiB: new(mem), DiskMiB: new(benchDisk)}, client.CreateOptions{Wait: "ready"})
	if err != nil {
		return api.VM{}, nil, err
	}
	_, machine, err := copyOfVM(dataDir, image, v.ID, benchDisk)
	return v, machine, err
}

// measure takes turns: once through hatchd, once by hand.
func (s *sleeps) measure(ctx context.Context, c *client.Client, dataDir string, mem int) error {
	v, machine, err := runMinimal(ctx, c, dataDir, mem)
	if err != nil {
		return err
	}
	defer func() { _ = machine.close() }() // files of a temporary directory
	hand := &sleeper{bare: machine}
	defer hand.kill()
	if err := hand.boot(ctx); err != nil {
		return err
	}
	for round := range sleepWarmUp + sleepRounds {
		if err := errors.Join(s.round(ctx, c, v.ID), s.byHand(ctx, hand)); err != nil {
			return err
		}
		if round+1 == sleepWarmUp {
			*s = sleeps{}
		}
	}
	return c.DeleteVM(ctx, v.ID)
}

// round lets the VM sleep twice: it is woken from RAM, and from disk.
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
	s.gone = append(s.gone, (<-gone).Sub(began))
	return nil
}

func (s *sleeps) awaitDurable(ctx context.Context, c *client.Client, id string) error {
	began := time.Now()
	err := sandbox.Poll(patience, func() (bool, error) {
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

// runThrough runs a command through hatchd, which must end well.
func runThrough(ctx context.Context, c *client.Client, id string, command api.Command) error {
	result, err := c.RunExec(ctx, id, api.RunExec{Command: command})
	if err == nil && result.ExitCode != 0 {
		err = fmt.Errorf("cannot run a command: %+v", result)
	}
	return err
}

func (s *sleeps) byHand(ctx context.Context, hand *sleeper) error {
	took, err := hand.sleep()
	if err != nil {
		return fmt.Errorf("cannot put a bare QEMU to sleep: %w", err)
	}
	s.bareOff = append(s.bareOff, took)
	on, run, err := hand.wake(ctx)
	if err != nil {
		return fmt.Errorf("cannot wake a bare QEMU: %w", err)
	}
	s.bareOn, s.bareRun = append(s.bareOn, on), append(s.bareRun, run)
	return nil
}

// sleeper is a bare QEMU that sleeps and wakes.
type sleeper struct {
	*bare
	cmd     *exec.Cmd
	control *qmp
	tap     *os.File // as QEMU was handed it; nil without a network
}

func (h *sleeper) start(ctx context.Context, more ...string) (err error) {
	args := append(slices.Clone(h.args), more...)
	if i := slices.Index(args, "-name"); i >= 0 {
		args[i+1] = "bare" // not to be taken for the VM's own
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
		_ = h.tap.Close() // QEMU's alone, as under hatchd: its end takes the TAP with it
	}
	h.control, err = dialQMP(filepath.Join(h.dir, "qmp"))
	return err
}

// renewTAP puts a new TAP in the place of the one that ended with QEMU.
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

// kill ends QEMU, if it runs, and waits for it.
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

// sleep tells how long it takes until QEMU is gone.
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
	if err := h.control.move("migrate", devices); err != nil {
		return 0, err
	}
	h.kill()
	return time.Since(began), nil
}

// wake tells how long it takes until the CPUs run, and until a command has been run.
func (h *sleeper) wake(ctx context.Context) (on, run time.Duration, err error) {
	began := time.Now()
	devices, err := os.Open(filepath.Join(h.dir, "devices"))
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = devices.Close() }()
	if err := h.start(ctx, "-incoming", "defer"); err != nil {
		return 0, 0, err
	}
	if err := h.control.move("migrate-incoming", devices); err != nil {
		return 0, 0, err
	}
	if err := h.control.do("cont", nil, nil); err != nil {
		return 0, 0, err
	}
	on = time.Since(began)
	err = h.runTrue(ctx)
	return on, time.Since(began), err
}

// runTrue begins a session with the agent and runs a command.
func (h *sleeper) runTrue(ctx context.Context) error {
	session, err := h.session(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	return runIn(ctx, session, wire.ProcessSpec{Argv: []string{"/bin/true"}})
}

// runIn runs a command, which must end well, and forgets it.
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
	ratio := func(a, b sample) float64 { return float64(a.median()) / float64(b.median()) }
	fmt.Fprintf(out, "\nsleep and wake of the minimal image, %d MiB, against a bare QEMU that does the same, in turn\n", mem)
	fmt.Fprintf(out, "  sleep, until the VMM is gone             %s\n", s.gone.tail())
	fmt.Fprintf(out, "    bare QEMU                              %s\n", s.bareOff.tail())
	fmt.Fprintf(out, "    ratio of the medians                   %.2f\n", ratio(s.gone, s.bareOff))
	fmt.Fprintf(out, "  sleep, until it answers                  %s\n", s.asleep.tail())
	fmt.Fprintf(out, "  from then until the memory is on disk    %s\n", s.durable.tail())
	fmt.Fprintf(out, "  wake from RAM, until it answers          %s\n", s.awake.tail())
	fmt.Fprintf(out, "    bare QEMU, until its CPUs run          %s\n", s.bareOn.tail())
	fmt.Fprintf(out, "  wake from RAM, until a command was run   %s\n", s.exec.tail())
	fmt.Fprintf(out, "  wake from disk, until a command was run  %s\n", s.cold.tail())
	fmt.Fprintf(out, "    bare QEMU                              %s\n", s.bareRun.tail())
	fmt.Fprintf(out, "    ratio of the medians, RAM and disk     %.2f, %.2f\n", ratio(s.exec, s.bareRun), ratio(s.cold, s.bareRun))
}
