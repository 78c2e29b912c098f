package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/test/sandbox"
)

const (
	saveRounds = 30 // n, of each
	saveWarmUp = 1  // more rounds, not counted
)

// saveSizes are guests' memory, and how much of it is filled, in MiB.
var saveSizes = []struct{ mem, filled int }{{256, 0}, {2048, 1024}}

// saves are the times of one size, of hatchd and of libvirt with the same guest.
type saves struct {
	ours  sleeps
	warm  wakes  // ours, from RAM
	cold  wakes  // ours, from disk
	ended sample // libvirt's managedsave until QEMU has ended
	rival wakes  // libvirt's start
}

// wakes are the times of wakes of a guest that prints to its console all the time.
type wakes struct {
	output sample // until the guest prints
	run    sample // until a command was run
}

// round times one wake. The file console has the guest's output.
func (w *wakes) round(console string, wake, run func() error) error {
	before, began := sizeOf(console), time.Now()
	if err := wake(); err != nil {
		return err
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for sizeOf(console) <= before {
		if time.Since(began) > benchLimit {
			return errors.New("the guest prints nothing")
		}
		<-tick.C
	}
	output := time.Since(began)
	if err := run(); err != nil {
		return err
	}
	w.output, w.run = append(w.output, output), append(w.run, time.Since(began))
	return nil
}

// sizeOf returns the size of a file in bytes, 0 for a missing one.
func sizeOf(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// measureLibvirt puts the same guest to sleep with hatchd and with libvirt.
func measureLibvirt(out io.Writer, d *sandbox.Daemon) error {
	program := libvirtDaemon()
	if program == "" {
		fmt.Fprintf(out, "\nlibvirt is not measured, because it is not installed: %s\n", howToLibvirt)
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	c, err := withMinimal(ctx, d)
	if err != nil {
		return err
	}
	for _, size := range saveSizes {
		var s saves
		if err := s.measure(ctx, c, d.DataDir, program, size.mem, size.filled); err != nil {
			return err
		}
		s.print(out, size.mem, size.filled)
	}
	return nil
}

// measure alternates between hatchd and libvirt.
func (s *saves) measure(ctx context.Context, c *client.Client, dataDir, program string, mem, filled int) (err error) {
	v, machine, err := runMinimal(ctx, c, dataDir, mem)
	if err != nil {
		return err
	}
	defer func() { _ = machine.close() }() // files of a temporary directory
	rival, err := startRival(ctx, program, machine, mem)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rival.close()) }()
	if filled > 0 {
		line := fill(filled)
		err := runThrough(ctx, c, v.ID, api.Command{Shell: line})
		if err := errors.Join(err, rival.do(ctx, wire.ProcessSpec{Shell: line})); err != nil {
			return err
		}
	}
	if _, err := c.StartExec(ctx, v.ID, api.RunExec{Command: api.Command{Shell: ticking}}); err != nil {
		return err
	}
	console := filepath.Join(dataDir, "vms", v.ID, "console.log")
	err = repeat(saveWarmUp, saveRounds, func() { *s = saves{} }, func() error {
		return errors.Join(s.throughHatch(ctx, c, v.ID, console), s.throughLibvirt(ctx, rival))
	})
	return errors.Join(err, c.DeleteVM(ctx, v.ID))
}

// fill is a shell line that fills a guest's memory with random bytes, the same 16 MiB
// again and again: an emulated guest generates them slowly.
func fill(mib int) string {
	return fmt.Sprintf("mkdir -p /full && mount -t tmpfs -o size=%dm full /full && dd if=/dev/urandom of=/full/random bs=1M count=16 && "+
		"i=1; while [ $i -lt %d ]; do cat /full/random; i=$((i+1)); done >/full/more", mib+1, mib/16)
}

// throughHatch puts our guest to sleep and wakes it, from RAM and from disk.
func (s *saves) throughHatch(ctx context.Context, c *client.Client, id, console string) error {
	wake := func() error {
		_, err := c.WakeVM(ctx, id)
		return err
	}
	run := func() error { return runTrue(ctx, c, id) }
	if err := s.ours.sleep(ctx, c, id); err != nil {
		return err
	}
	if err := s.warm.round(console, wake, run); err != nil {
		return err
	}
	if err := errors.Join(s.ours.sleep(ctx, c, id), s.ours.awaitDurable(ctx, c, id)); err != nil {
		return err
	}
	return s.cold.round(console, wake, run)
}

func (s *saves) throughLibvirt(ctx context.Context, r *rival) error {
	gone, err := r.save()
	if err != nil {
		return err
	}
	s.ended = append(s.ended, gone)
	start := func() error { return r.command("start " + domainName) }
	run := func() error {
		return errors.Join(r.await("started"), r.do(ctx, wire.ProcessSpec{Argv: []string{"/bin/true"}}))
	}
	return s.rival.round(r.path("guest", "console"), start, run)
}

// rival is a guest of libvirt.
type rival struct{ *libvirt }

// ticking is a shell line that prints every 20 ms without starting a process.
const ticking = "mkfifo /tick && exec 3<>/tick && while :; do echo tick; read -t 0.02 x <&3; done >/dev/ttyS0"

// startRival starts libvirt and a guest like machine in it.
func startRival(ctx context.Context, program string, machine *bare, mem int) (r *rival, err error) {
	l, err := startLibvirt(program)
	if err != nil {
		return nil, err
	}
	r = &rival{l}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("cannot run the guest in libvirt: %w\n%s", err, sandbox.Tail(l.log(), 20)), l.close())
		}
	}()
	if err := r.define(machine, mem); err != nil {
		return nil, err
	}
	if err := errors.Join(r.command("start "+domainName), r.await("started")); err != nil {
		return nil, err
	}
	var last error
	up := func() (bool, error) {
		last = r.do(ctx, wire.ProcessSpec{Argv: []string{"/bin/true"}})
		return last == nil, ctx.Err()
	}
	if err := sandbox.Poll(benchLimit, up); err != nil {
		return nil, errors.Join(err, last)
	}
	return r, r.tick(ctx)
}

// tick starts ticking in the guest.
func (r *rival) tick(ctx context.Context) error {
	session, err := r.session(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	_, err = session.StartProcess(ctx, wire.ProcessSpec{ID: "exec_tickticktick", Shell: ticking})
	return err
}

func (r *rival) define(machine *bare, mem int) error {
	if err := os.Mkdir(r.path("guest"), 0o700); err != nil {
		return err
	}
	d, err := domainOf(machine, r.path("guest"), mem)
	if err != nil {
		return err
	}
	f, err := os.Create(r.path("domain.xml"))
	if err != nil {
		return err
	}
	if err := errors.Join(domainXML.Execute(f, d), f.Close(), r.own()); err != nil {
		return err
	}
	return errors.Join(r.command("define "+f.Name()), r.await("defined"))
}

// session opens a session with the guest's agent.
func (r *rival) session(ctx context.Context) (*wire.Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", r.path("guest", "agent"))
	if err != nil {
		return nil, err
	}
	return wire.Connect(ctx, conn)
}

// do runs a command in the guest.
func (r *rival) do(ctx context.Context, spec wire.ProcessSpec) error {
	session, err := r.session(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	return runIn(ctx, session, spec)
}

// save returns how long a managedsave takes until QEMU has ended.
func (r *rival) save() (time.Duration, error) {
	vmm, err := findVMM(domainName)
	if err != nil {
		return 0, err
	}
	gone := vmm.watch()
	began := time.Now()
	if err := errors.Join(r.command("managedsave "+domainName), r.await("saved")); err != nil {
		return 0, err
	}
	return (<-gone).Sub(began), nil
}

// close ends the guest and libvirt.
func (r *rival) close() error {
	return errors.Join(r.command("destroy "+domainName), r.await("destroyed"), r.libvirt.close())
}

func (s *saves) print(out io.Writer, mem, filled int) {
	times := func(ours, theirs sample) string { return fmt.Sprintf("1 : %.1f", ratio(theirs, ours)) }
	fmt.Fprintf(out, "\nsleep and wake of the minimal image, %d MiB, %d of them filled, against libvirt's managedsave and start of the same guest, in turn\n", mem, filled)
	fmt.Fprintf(out, "  sleep, until the VMM has ended           %s\n", s.ours.ended.tail())
	fmt.Fprintf(out, "    libvirt, managedsave                   %s\n", s.ended.tail())
	fmt.Fprintf(out, "    ratio of the medians                   %s\n", times(s.ours.ended, s.ended))
	fmt.Fprintf(out, "  from then until the memory is on disk    %s\n", s.ours.durable.tail())
	for _, w := range []struct {
		what        string
		output, run sample
	}{{"wake from RAM", s.warm.output, s.warm.run}, {"wake from disk", s.cold.output, s.cold.run}, {"libvirt, start", s.rival.output, s.rival.run}} {
		fmt.Fprintf(out, "  %-14s until the guest prints      %s\n", w.what+",", w.output.tail())
		fmt.Fprintf(out, "  %-14s until a command was run     %s\n", "", w.run.tail())
	}
	fmt.Fprintf(out, "    ratios of the medians, guest prints     %s from RAM, %s from disk\n", times(s.warm.output, s.rival.output), times(s.cold.output, s.rival.output))
	fmt.Fprintf(out, "    and a command was run                   %s from RAM, %s from disk\n", times(s.warm.run, s.rival.run), times(s.cold.run, s.rival.run))
}
