package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// copying is one run of hatch cp.
type copying struct {
	*cli
	guest
	keep   bool // owners, setuid bits and links that lead out of the tree
	follow bool // the link that the source is
	meter  meter
	left   leftOut
}

func (c *cli) copyCommand() *cobra.Command {
	var keep, follow, quiet bool
	cmd := &cobra.Command{
		Use: "cp SRC DST", Short: "Copy files into or out of a running VM",
		Long: `Copy a file or a tree into or out of a running VM. One of SRC and DST is
VM:PATH, the other a path on this machine, or - for stdin or stdout. It goes by
docker's rules: into DST when that is a directory, else to DST itself; of a
directory that ends with /. the contents are copied.

For - a single file is its content, and a tree a tar archive: what comes from
stdin is unpacked when DST is a directory in the VM, and else written to it.

Files belong to root in the VM, and to you on this machine. What a VM sends is
not trusted: nothing is written outside of DST, devices are left out, and so
are setuid bits and links that lead out of the tree unless -a is given. A file
that does not come to its end leaves the one that was there.`,
		Example: "  hatch cp web:/var/log/syslog .\n  hatch cp -a ./site/. web:/srv/www\n  echo hello | hatch cp - web:/etc/motd\n  hatch cp web:/etc - | tar t",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usage(cmd, "hatch cp takes a source and a destination; %d were given", len(args))
			}
			return nil
		},
		ValidArgsFunction: c.completePlaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := c.copyFiles(cmd, placeOf(args[0]), placeOf(args[1]), &copying{cli: c, keep: keep, follow: follow}, quiet)
			if err != nil {
				return fmt.Errorf("cannot copy %s to %s: %w", args[0], args[1], err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&keep, "archive", "a", false, "keep owners, setuid bits and links that lead out of the tree")
	cmd.Flags().BoolVarP(&follow, "follow-link", "L", false, "copy what SRC leads to when it is a link")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}

// place is one side of a copy.
type place struct {
	vm   string // "" for this machine
	path string
}

func (p place) isStream() bool { return p.vm == "" && p.path == "-" }

// placeOf reads VM:PATH, where PATH begins at the guest's root, or a path of
// this machine, which has a slash or a dot before any colon.
func placeOf(arg string) place {
	vm, inGuest, found := strings.Cut(arg, ":")
	if !found || vm == "" || strings.HasPrefix(vm, ".") || strings.Contains(vm, "/") {
		return place{path: arg}
	}
	if !strings.HasPrefix(inGuest, "/") {
		inGuest = "/" + inGuest
	}
	return place{vm, inGuest}
}

func (c *cli) copyFiles(cmd *cobra.Command, from, to place, job *copying, quiet bool) error {
	ref := from.vm + to.vm
	switch {
	case from.vm != "" && to.vm != "":
		return hint(errors.New("one side must be on this machine"), "hatch cp %s:%s - | hatch cp - %s:%s", from.vm, from.path, to.vm, to.path)
	case ref == "":
		return usage(cmd, "one side must be in a VM: VM:PATH")
	}
	server, err := c.client()
	if err != nil {
		return err
	}
	v, err := findVM(cmd.Context(), server, ref)
	if err != nil {
		return err
	}
	job.guest = guest{server, v.ID}
	end := func() {}
	if !quiet && !to.isStream() {
		job.meter.what = "copying " + from.path
		end = c.progressOf(job.meter.text)
	}
	if from.vm != "" {
		err = job.get(cmd.Context(), from.path, to.path)
	} else {
		err = job.put(cmd.Context(), from.path, to.path)
	}
	end()
	job.left.report(c.err)
	return err
}

// guest is the files of one VM.
type guest struct {
	files *client.Client
	id    string
}

const maxLinks = 40 // as Linux has it

// resolve returns the file that path leads to through links.
func (g guest) resolve(ctx context.Context, p string) (api.File, error) {
	for range maxLinks {
		f, err := g.files.StatFile(ctx, g.id, p)
		if err != nil || f.Kind != api.FileSymlink {
			return f, err
		}
		target := client.TargetOf(f)
		if !strings.HasPrefix(target, "/") {
			target = dirOf(p) + target
		}
		p = target
	}
	return api.File{}, fmt.Errorf("%s: there are too many links", p)
}

// dirOf returns what is before the last part of a path, with its slash. The
// path is not cleaned: with links, a/../b is not b.
func dirOf(p string) string {
	p = strings.TrimRight(p, "/")
	return p[:strings.LastIndexByte(p, '/')+1]
}

// endsInDot reports whether a path means the contents of a directory.
func endsInDot(p string) bool { return p == "." || strings.HasSuffix(p, "/.") }

// into returns the path of name in a directory of the guest.
func into(dir, name string) string { return strings.TrimRight(dir, "/") + "/" + name }

// meter counts what was copied.
type meter struct {
	what  string
	total int64 // 0: not known
	moved atomic.Int64
}

func (m *meter) text() string {
	if m.total > 0 {
		return fmt.Sprintf("%s: %s of %s", m.what, bytesText(m.moved.Load()), bytesText(m.total))
	}
	return fmt.Sprintf("%s: %s", m.what, bytesText(m.moved.Load()))
}

// counted returns r, what is read of which is counted.
func (m *meter) counted(r io.Reader) io.Reader { return io.TeeReader(r, m) }

// Write counts.
func (m *meter) Write(p []byte) (int, error) {
	m.moved.Add(int64(len(p)))
	return len(p), nil
}

// leftOut is what was not copied.
type leftOut struct {
	lines []string
	more  int
}

// maxLeftOut bounds how many are told.
const maxLeftOut = 20

func (l *leftOut) add(name, why string) {
	if len(l.lines) == maxLeftOut {
		l.more++
		return
	}
	l.lines = append(l.lines, fmt.Sprintf("hatch: left out %s: %s", clean(path.Clean(name)), clean(why)))
}

func (l *leftOut) report(w io.Writer) {
	for _, line := range l.lines {
		fmt.Fprintln(w, line)
	}
	if l.more > 0 {
		fmt.Fprintf(w, "hatch: left out %d more\n", l.more)
	}
}

// completePlaces offers VMs, and files once there is something of a path.
func (c *cli) completePlaces(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if strings.ContainsAny(typed, "/.:") || len(args) > 1 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	found, _ := c.completeVMs(cmd, args, typed)
	for i, f := range found {
		name, about, _ := strings.Cut(f, "\t")
		found[i] = cobra.CompletionWithDesc(name+":", about)
	}
	return found, cobra.ShellCompDirectiveNoSpace
}
