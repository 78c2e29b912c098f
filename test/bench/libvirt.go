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

// saveSizes are guests' memory, and how much of it is filled with noise, in MiB.
var saveSizes = []struct{ mem, filled int }{{256, 0}, {2048, 1024}}

// saves is what was measured of one size: of hatchd, and of libvirt with the
// same guest.
type saves struct {
	ours  sleeps
	warm  wakes  // of ours, from RAM
	cold  wakes  // and from disk
	gone  sample // libvirt's managedsave until QEMU is gone
	rival wakes  // start from it, by libvirt
}

// wakes are wakes of a guest that says something all the time.
type wakes struct {
	output sample // until it says something
	run    sample // until the first command has been run
}

// round times one wake. What the guest says lies in the file console.
func (w *wakes) round(console string, wake, run func() error) error {
	said, began := sizeOf(console), time.Now()
	if err := wake(); err != nil {
		return err
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for sizeOf(console) <= said {
		if time.Since(began) > patience {
			return errors.New("the guest does not go on")
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

// sizeOf is how long a file is in bytes; 0 while there is none.
func sizeOf(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// measureLibvirt lets the same guest sleep through hatchd and through libvirt.
func measureLibvirt(out io.Writer, d *sandbox.Daemon) error {
	program := libvirtDaemon()
	if program == "" {
		fmt.Fprintf(out, "\nlibvirt is not compared, since it is not installed: %s\n", howToLibvirt)
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	c, err := d.Client()
	if err != nil {
		return err
	}
	if err := build(c, "minimal"); err != nil {
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

// measure takes turns: once through hatchd, once through libvirt.
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
	for round := range saveWarmUp + saveRounds {
		if err := errors.Join(s.throughHatch(ctx, c, v.ID, console), s.throughLibvirt(ctx, rival)); err != nil {
			return err
		}
		if round+1 == saveWarmUp {
			*s = saves{}
		}
	}
	return c.DeleteVM(ctx, v.ID)
}

// fill is a line that fills so many MiB of a guest's memory with noise, the same
// 16 of them again and again: an emulated guest is slow to make it.
func fill(mib int) string {
	return fmt.Sprintf("mkdir -p /full && mount -t tmpfs -o size=%dm full /full && dd if=/dev/urandom of=/full/noise bs=1M count=16 && "+
		"i=1; while [ $i -lt %d ]; do cat /full/noise; i=$((i+1)); done >/full/more", mib+1, mib/16)
}

// throughHatch lets our guest sleep twice: it is woken from RAM, and from disk.
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
	s.gone = append(s.gone, gone)
	start := func() error { return r.begin("start " + domainName) }
	run := func() error {
		return errors.Join(r.await("started"), r.do(ctx, wire.ProcessSpec{Argv: []string{"/bin/true"}}))
	}
	return s.rival.round(r.path("guest", "console"), start, run)
}

// rival is a guest that libvirt runs.
type rival struct{ *libvirt }

// ticking says something every 20 ms, and starts no process for it.
const ticking = "mkfifo /tick && exec 3<>/tick && while :; do echo tick; read -t 0.02 x <&3; done >/dev/ttyS0"

// startRival starts a libvirt and, in it, the guest that machine is a copy of.
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
	if err := errors.Join(r.begin("start "+domainName), r.await("started")); err != nil {
		return nil, err
	}
	var last error
	up := func() (bool, error) {
		last = r.do(ctx, wire.ProcessSpec{Argv: []string{"/bin/true"}})
		return last == nil, ctx.Err()
	}
	if err := sandbox.Poll(patience, up); err != nil {
		return nil, errors.Join(err, last)
	}
	return r, r.tick(ctx)
}

// tick has the guest say something on its serial console all the time.
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
	return errors.Join(r.begin("define "+f.Name()), r.await("defined"))
}

// session begins one with the guest's agent.
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

// save tells how long a managedsave takes until QEMU is gone.
func (r *rival) save() (time.Duration, error) {
	vmm, err := findVMM(domainName)
	if err != nil {
		return 0, err
	}
	gone := vmm.watch()
	began := time.Now()
	if err := errors.Join(r.begin("managedsave "+domainName), r.await("saved")); err != nil {
		return 0, err
	}
	return (<-gone).Sub(began), nil
}

// close ends the guest and libvirt.
func (r *rival) close() error {
	return errors.Join(r.begin("destroy "+domainName), r.await("destroyed"), r.libvirt.close())
}

func (s *saves) print(out io.Writer, mem, filled int) {
	ratio := func(ours, theirs sample) string {
		return fmt.Sprintf("1 : %.1f", float64(theirs.median())/float64(ours.median()))
	}
	fmt.Fprintf(out, "\nsleep and wake of the minimal image, %d MiB, %d of them filled, against libvirt's managedsave and start of the same guest, in turn\n", mem, filled)
	fmt.Fprintf(out, "  sleep, until the VMM is gone             %s\n", s.ours.gone.tail())
	fmt.Fprintf(out, "    libvirt, managedsave                   %s\n", s.gone.tail())
	fmt.Fprintf(out, "    ratio of the medians                   %s\n", ratio(s.ours.gone, s.gone))
	fmt.Fprintf(out, "  from then until the memory is on disk    %s\n", s.ours.durable.tail())
	for _, w := range []struct {
		what        string
		output, run sample
	}{{"wake from RAM", s.warm.output, s.warm.run}, {"wake from disk", s.cold.output, s.cold.run}, {"libvirt, start", s.rival.output, s.rival.run}} {
		fmt.Fprintf(out, "  %-14s until the guest says more   %s\n", w.what+",", w.output.tail())
		fmt.Fprintf(out, "  %-14s until a command was run     %s\n", "", w.run.tail())
	}
	fmt.Fprintf(out, "    ratios of the medians, guest says more  %s from RAM, %s from disk\n", ratio(s.warm.output, s.rival.output), ratio(s.cold.output, s.rival.output))
	fmt.Fprintf(out, "    and a command was run                   %s from RAM, %s from disk\n", ratio(s.warm.run, s.rival.run), ratio(s.cold.run, s.rival.run))
}
