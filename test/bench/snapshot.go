package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

const (
	snapshotRounds = 12 // n, of each
	snapshotWarmUp = 2  // more rounds, not counted
)

// snapshots are the times of snapshots and restores of one size.
type snapshots struct {
	taken        sample // POST snapshot of a running VM until its response: it is durable
	restored     sample // POST restore until its response
	exec         sample // POST restore until a command was run
	cloned       sample // POST /vms from the snapshot until a command was run
	bareTaken    sample // a bare QEMU saves memory and devices to a file, until that is synced
	bareRestored sample // a bare QEMU starts from the file until its CPUs run
	bareExec     sample // the same until a command was run
}

// measureSnapshots takes snapshots of running guests and restores them, with hatchd
// and a bare QEMU.
func measureSnapshots(out io.Writer, d *sandbox.Daemon) error {
	return eachSize(out, d, func() measurement { return &snapshots{} })
}

// measure alternates between hatchd and a bare QEMU.
func (s *snapshots) measure(ctx context.Context, t trial) error {
	return repeat(snapshotWarmUp, snapshotRounds, func() { *s = snapshots{} }, func() error {
		return errors.Join(s.round(ctx, t.c, t.vm), s.bareRound(ctx, t.qemu))
	})
}

// round takes a snapshot, restores it and clones a VM from it.
func (s *snapshots) round(ctx context.Context, c *client.Client, id string) error {
	began := time.Now()
	snap, err := c.CreateSnapshot(ctx, id, api.CreateSnapshot{})
	if err != nil {
		return err
	}
	s.taken = append(s.taken, time.Since(began))
	began = time.Now()
	if _, err := c.RestoreVM(ctx, id, snap.ID); err != nil {
		return err
	}
	s.restored = append(s.restored, time.Since(began))
	if err := runTrue(ctx, c, id); err != nil {
		return err
	}
	s.exec = append(s.exec, time.Since(began))
	began = time.Now()
	clone, err := c.CreateVM(ctx, api.CreateVM{SnapshotID: snap.ID}, client.CreateOptions{})
	if err != nil {
		return err
	}
	if err := runTrue(ctx, c, clone.ID); err != nil {
		return err
	}
	s.cloned = append(s.cloned, time.Since(began))
	return errors.Join(c.DeleteVM(ctx, clone.ID), c.DeleteSnapshot(ctx, snap.ID))
}

// bareRound does the same with QEMU's own migration to a file and back.
func (s *snapshots) bareRound(ctx context.Context, qemu *sleeper) error {
	path := filepath.Join(qemu.dir, "snapshot")
	began := time.Now()
	if err := qemu.saveAll(path); err != nil {
		return fmt.Errorf("cannot save a bare QEMU: %w", err)
	}
	s.bareTaken = append(s.bareTaken, time.Since(began))
	qemu.kill()
	if err := qemu.clearMemory(); err != nil {
		return err
	}
	restored, exec, err := qemu.startFrom(ctx, path, true)
	if err != nil {
		return fmt.Errorf("cannot restore a bare QEMU: %w", err)
	}
	s.bareRestored, s.bareExec = append(s.bareRestored, restored), append(s.bareExec, exec)
	return nil
}

// saveAll stops QEMU and saves its memory and devices to a file.
func (h *sleeper) saveAll(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	if err := h.control.do("stop", nil, nil); err != nil {
		return err
	}
	if err := h.control.move("migrate", file, true); err != nil {
		return err
	}
	return file.Sync()
}

// clearMemory frees the memory that QEMU has left in its file.
func (h *sleeper) clearMemory() error {
	for _, arg := range h.args {
		m := memory.FindStringSubmatch(arg)
		if m == nil {
			continue
		}
		info, err := h.file(m[1]).Stat()
		if err != nil {
			return err
		}
		return unix.Fallocate(int(h.file(m[1]).Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, info.Size())
	}
	return errors.New("QEMU has no memory file")
}

func (s *snapshots) print(out io.Writer, mem int) {
	fmt.Fprintf(out, "\nsnapshot and restore of the minimal image, %d MiB, against a bare QEMU that migrates to a file and back, in turn\n", mem)
	fmt.Fprintf(out, "  snapshot, until the response             %s\n", s.taken.tail())
	fmt.Fprintf(out, "    bare QEMU                              %s\n", s.bareTaken.tail())
	fmt.Fprintf(out, "    ratio of the medians                   %.2f\n", ratio(s.taken, s.bareTaken))
	fmt.Fprintf(out, "  restore, until the response              %s\n", s.restored.tail())
	fmt.Fprintf(out, "    bare QEMU, until its CPUs run          %s\n", s.bareRestored.tail())
	fmt.Fprintf(out, "  restore, until a command was run         %s\n", s.exec.tail())
	fmt.Fprintf(out, "    bare QEMU                              %s\n", s.bareExec.tail())
	fmt.Fprintf(out, "    ratios of the medians                  %.2f, %.2f\n", ratio(s.restored, s.bareRestored), ratio(s.exec, s.bareExec))
	fmt.Fprintf(out, "  clone, until a command was run           %s\n", s.cloned.tail())
	fmt.Fprintf(out, "    ratio to the bare QEMU's restore       %.2f\n", ratio(s.cloned, s.bareExec))
}
