package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

func (c *cli) logsCommand() *cobra.Command {
	var follow, raw bool
	var tail, source string
	cmd := &cobra.Command{
		Use: "logs VM", Short: "Print what a VM wrote to its console", Args: oneArg("VM"),
		Long: `Print what a VM wrote to its serial console, what the VMM that runs it printed
(--source vmm), or what cloud-init in it did (--source cloud-init; the VM must
run). On a terminal, escape sequences of the guest are left out unless --raw is
given; elsewhere every byte is kept.`,
		Example:           "  hatch logs -f web\n  hatch logs --source cloud-init -n 20 web",
		ValidArgsFunction: c.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts := client.LogOptions{Source: source, Follow: follow}
			if tail != "all" {
				n, err := strconv.Atoi(tail)
				if err != nil || n < 1 {
					return usage(cmd, "--tail takes a number of lines or all, not %q", tail)
				}
				opts.Tail = n
			}
			if err := c.logs(cmd.Context(), args[0], opts, raw); err != nil {
				return fmt.Errorf("cannot read the log of %s: %w", args[0], err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().StringVarP(&tail, "tail", "n", "all", "`lines` from the end")
	cmd.Flags().StringVar(&source, "source", "console", "`log`: console, vmm or cloud-init")
	_ = cmd.RegisterFlagCompletionFunc("source", cobra.FixedCompletions([]string{"console", "vmm", "cloud-init"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().BoolVar(&raw, "raw", false, "every byte, on a terminal too")
	return cmd
}

func (c *cli) logs(ctx context.Context, ref string, opts client.LogOptions, raw bool) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	v, err := findVM(ctx, server, ref)
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

func (c *cli) waitCommand() *cobra.Command {
	var condition string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "wait VM...", Short: "Wait for a state of VMs, or for something inside them", Args: someArgs("VM"),
		Long: `Wait for a state of VMs (running, stopped, paused, …) or for something inside
them: ready (all that is known of the guest), agent, cloud-init, ssh, port:N
(a TCP port accepts) or http:PORT/PATH (a GET answers 2xx or 3xx). Ports are
reached by the VM's network or through its agent, so a VM without a network
has them too.`,
		Example:           "  hatch wait web --for port:80 --timeout 2m\n  hatch wait web --for http:8080/health\n  hatch wait web --for stopped",
		ValidArgsFunction: c.completeVMs,
		RunE: func(cmd *cobra.Command, refs []string) error {
			return c.each(cmd, refs, "wait for", onVM(func(ctx context.Context, server *client.Client, v api.VM) (api.VM, error) {
				defer c.progress("waiting until " + displayName(v) + " is " + condition)()
				return server.WaitVM(ctx, v.ID, condition, timeout)
			}), c.showRef)
		},
	}
	cmd.Flags().StringVar(&condition, "for", "ready", "a state, ready, agent, cloud-init, ssh, port:N or http:PORT/PATH")
	cmd.Flags().DurationVar(&timeout, "timeout", defaultWait, "how long, at most 10m")
	_ = cmd.RegisterFlagCompletionFunc("for", cobra.FixedCompletions(
		[]string{"ready", "agent", "cloud-init", "ssh", "port:", "http:", api.StateRunning, api.StateStopped, api.StatePaused}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}
