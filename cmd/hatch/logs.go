package main

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/client"
)

// logsCommand is hatch logs.
type logsCommand struct {
	*printer
	*connection
}

func (c logsCommand) command() *cobra.Command {
	var follow, raw, timestamps bool
	var tail, source, since string
	cmd := &cobra.Command{
		Use: "logs VM", Short: "Print the console output of a VM", Args: oneArg("VM"),
		Long: `Print the output of a VM's serial console, of the VMM that runs it (--source
vmm), or of cloud-init inside it (--source cloud-init; the VM must run). On a
terminal, escape sequences of the guest are dropped unless --raw is given;
elsewhere every byte is kept. hatchd knows when lines of the console came.`,
		Example:           "  hatch logs -f web\n  hatch logs --since 15m --timestamps web\n  hatch logs --source cloud-init -n 20 web",
		ValidArgsFunction: vmKind.complete(c.connection),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := sinceTime(since, c.now())
			if err != nil {
				return usage(cmd, "%s", err)
			}
			opts := client.LogOptions{Source: source, Follow: follow, Since: from, Timestamps: timestamps}
			if tail != "all" {
				n, err := strconv.Atoi(tail)
				if err != nil || n < 1 {
					return usage(cmd, "--tail takes a number of lines or all, not %q", tail)
				}
				opts.Tail = n
			}
			if err := c.print(cmd.Context(), args[0], opts, raw); err != nil {
				return fmt.Errorf("cannot read the log of %s: %w", args[0], err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "print new output as it comes")
	cmd.Flags().StringVarP(&tail, "tail", "n", "all", "number of `lines` from the end")
	cmd.Flags().StringVar(&since, "since", "", "only lines since a `time`: how long ago, as 15m, or RFC 3339")
	cmd.Flags().BoolVarP(&timestamps, "timestamps", "t", false, "print when each line came")
	cmd.Flags().StringVar(&source, "source", "console", "`log`: console, vmm or cloud-init")
	_ = cmd.RegisterFlagCompletionFunc("source", cobra.FixedCompletions([]string{"console", "vmm", "cloud-init"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().BoolVar(&raw, "raw", false, "keep escape sequences on a terminal, too")
	return cmd
}

func (c logsCommand) print(ctx context.Context, ref string, opts client.LogOptions, raw bool) error {
	server, v, err := c.openVM(ctx, ref)
	if err != nil {
		return err
	}
	log, err := server.VMLogs(ctx, v.ID, opts)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	out := c.out
	if c.outTTY && !raw {
		out = &cleaner{w: c.out}
	}
	_, err = io.Copy(out, log)
	return err
}
