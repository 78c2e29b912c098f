package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// cli is one run of the program.
type cli struct {
	streams
	url     string
	keyFile string
	format  format
	timing  bool
}

// Groups of the help text.
const (
	groupVMs   = "vms"
	groupReach = "reach"
	groupNouns = "nouns"
	groupHost  = "host"
)

// run runs one command line and returns the exit code.
func run(ctx context.Context, args []string, s streams) int {
	c := &cli{streams: s, format: formatTable}
	root := c.command()
	root.SetArgs(args)
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	began := s.now()
	err := root.ExecuteContext(ctx)
	if c.timing {
		fmt.Fprintf(s.err, "took %s\n", s.now().Sub(began).Round(time.Millisecond))
	}
	return c.exitCode(ctx, err)
}

func (c *cli) exitCode(ctx context.Context, err error) int {
	var exit exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	case ctx.Err() != nil:
		fmt.Fprintln(c.err, "hatch: interrupted")
		return exitOwn
	}
	c.report(err)
	return exitOwn
}

func (c *cli) command() *cobra.Command {
	root := &cobra.Command{
		Use:           "hatch",
		Short:         "Run microVMs on a Hatch server",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Long: `hatch creates and runs virtual machines on a Hatch server.

The server is --url or HATCH_URL. The API key is read from --key-file,
HATCH_API_KEY, the data directory of a server on this machine
(HATCH_DATA_DIR/admin.key, /var/lib/hatch/admin.key), or ~/.config/hatch/key.
It is never taken from the command line, which other users can read.

VMs, images, snapshots, templates and keys can be given by name, by id, or by
the beginning of an id that fits one of them only.

hatch itself fails with exit code 125; hatch exec, hatch ssh and hatch run --
COMMAND exit with the guest's code.`,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, "%s", err) })
	flags := root.PersistentFlags()
	flags.StringVar(&c.url, "url", "", "the server's `address` (HATCH_URL, else "+defaultURL+")")
	flags.StringVar(&c.keyFile, "key-file", "", "read the API key from `file`")
	flags.VarP(&c.format, "output", "o", "`format`: table, wide, json, jsonl or yaml")
	flags.BoolVar(&c.timing, "timing", false, "tell on stderr how long it took")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formatNames, cobra.ShellCompDirectiveNoFileComp))

	root.AddGroup(
		&cobra.Group{ID: groupVMs, Title: "Virtual machines:"},
		&cobra.Group{ID: groupReach, Title: "Reaching them:"},
		&cobra.Group{ID: groupNouns, Title: "What they are made of:"},
		&cobra.Group{ID: groupHost, Title: "Server and host:"},
	)
	grouped(root, groupVMs, c.createCommand(), c.runCommand(), c.lsCommand(), c.inspectCommand(), c.rmCommand(),
		c.startCommand(), c.stopCommand(), c.restartCommand(), c.pauseCommand(), c.resumeCommand(), c.sleepCommand(), c.wakeCommand(), c.waitCommand(), c.topCommand(),
		c.restoreCommand(), c.forkCommand(), c.eventsCommand(), c.whyCommand())
	grouped(root, groupReach, c.execCommand(), c.execsCommand(), c.sshCommand(), c.sshConfigCommand(), c.consoleCommand(), c.logsCommand(), c.copyCommand())
	grouped(root, groupNouns, c.imageCommand(), c.snapshotCommand(), c.templateCommand(), c.keyCommand(), c.webhookCommand())
	grouped(root, groupHost, c.healthCommand(), c.doctorCommand(), c.apiCommand(), c.versionCommand())
	return root
}

func grouped(root *cobra.Command, group string, commands ...*cobra.Command) {
	for _, cmd := range commands {
		cmd.GroupID = group
		root.AddCommand(cmd)
	}
}

// noun makes a command that only has subcommands.
func noun(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(commands...)
	return cmd
}
