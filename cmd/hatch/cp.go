package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/cmd/hatch/internal/cp"
)

// cpCommand is hatch cp.
type cpCommand struct {
	*printer
	*connection
}

func (c cpCommand) command() *cobra.Command {
	var keepAll, followLinks, quiet bool
	cmd := &cobra.Command{
		Use: "cp SRC DST", Short: "Copy files into or out of a running VM",
		Long: `Copy a file or a tree into or out of a running VM. One of SRC and DST is
VM:PATH, the other a path on this machine, or - for stdin or stdout. The rules are
docker's: an existing directory DST is copied into, any other DST is the new name;
a SRC that ends with /. copies the contents of a directory.

With -, a single file is its content, and a tree a tar archive: stdin is unpacked
if DST is a directory in the VM, and written to the file DST otherwise. An archive
on stdin may be compressed with gzip, bzip2, xz or zstd.

Copied files belong to root in the VM, and to you on this machine. A VM is not
trusted: nothing is written outside DST, nor more than what the VM sends; devices
are skipped; setuid bits and links out of the tree are dropped unless -a is given. If the transfer of a file
breaks, the old file is kept. Long runs of zeros take no space in a copy, and hard
links within a tree stay links.`,
		Example: "  hatch cp web:/var/log/syslog .\n  hatch cp -a ./site/. web:/srv/www\n  echo hello | hatch cp - web:/etc/motd\n  hatch cp web:/etc - | tar t",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usage(cmd, "hatch cp takes a source and a destination; %d were given", len(args))
			}
			return nil
		},
		ValidArgsFunction: c.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			job := &cp.Copy{
				KeepAll: keepAll, FollowLinks: followLinks,
				Stdin: c.in, Stdout: c.out, StdoutIsTerminal: c.outTTY,
			}
			if c.outTTY {
				job.Stdout = &cleaner{w: c.out}
			}
			if err := c.copy(cmd, placeOf(args[0]), placeOf(args[1]), job, quiet); err != nil {
				return fmt.Errorf("cannot copy %s to %s: %w", args[0], args[1], err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&keepAll, "archive", "a", false, "keep owners, setuid bits, extended attributes (such as capabilities) and links out of the tree")
	cmd.Flags().BoolVarP(&followLinks, "follow-link", "L", false, "if SRC is a link, copy its target")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}

// place is one side of a copy.
type place struct {
	vm   string // "" for this machine
	path string
}

// placeOf reads VM:PATH, where PATH is relative to the guest's root directory, or
// a path on this machine, which has a slash or a dot before any colon.
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

func (c cpCommand) copy(cmd *cobra.Command, from, to place, job *cp.Copy, quiet bool) error {
	ref := from.vm + to.vm
	switch {
	case from.vm != "" && to.vm != "":
		return hint(errors.New("one side must be on this machine"), "hatch cp %s:%s - | hatch cp - %s:%s", from.vm, from.path, to.vm, to.path)
	case ref == "":
		return usage(cmd, "one side must be in a VM: VM:PATH")
	}
	server, v, err := c.openVM(cmd.Context(), ref)
	if err != nil {
		return err
	}
	job.Client, job.VM = server, v.ID
	end := func() {}
	if !quiet && (to.vm != "" || to.path != cp.Stream) {
		end = c.progressOf(func() string {
			return copyProgress(from.path, job.Progress.Moved(), job.Progress.Total())
		})
	}
	if from.vm != "" {
		err = job.Get(cmd.Context(), from.path, to.path)
	} else {
		err = job.Put(cmd.Context(), from.path, to.path)
	}
	end()
	c.reportSkipped(job.Skipped)
	var outside *cp.OutsideError
	switch {
	case errors.Is(err, cp.ErrTerminal):
		return hint(err, "redirect stdout, or pipe it to tar")
	case errors.As(err, &outside):
		return hint(err, "copy its target with -L, or the link itself with -a")
	}
	return err
}

// copyProgress returns the text of the spinner. A total of 0 is not known.
func copyProgress(name string, moved, total int64) string {
	if total > 0 {
		return fmt.Sprintf("copying %s: %s of %s", name, bytesText(moved), bytesText(total))
	}
	return fmt.Sprintf("copying %s: %s", name, bytesText(moved))
}

func (c cpCommand) reportSkipped(skipped cp.Skipped) {
	for _, f := range skipped.Files {
		fmt.Fprintf(c.err, "hatch: left out %s: %s\n", clean(f.Name), clean(f.Reason))
	}
	if skipped.More > 0 {
		fmt.Fprintf(c.err, "hatch: left out %d more\n", skipped.More)
	}
}

// complete offers VMs, and files once the word looks like a path.
func (c cpCommand) complete(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if strings.ContainsAny(typed, "/.:") || len(args) > 1 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	found, _ := vmKind.complete(c.connection)(cmd, args, typed)
	for i, f := range found {
		name, about, _ := strings.Cut(f, "\t")
		found[i] = cobra.CompletionWithDesc(name+":", about)
	}
	return found, cobra.ShellCompDirectiveNoSpace
}
