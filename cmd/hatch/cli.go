package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/hatchvm/hatch/client"
)

// cli is one run of the program: the parts that its commands share.
type cli struct {
	*printer
	*connection
	timing bool
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
	c := &cli{printer: &printer{streams: s, format: formatTable}, connection: &connection{getenv: s.env}}
	root := c.command()
	root.SetArgs(args)
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	began := s.now()
	cmd, err := root.ExecuteContextC(ctx)
	if c.timing {
		fmt.Fprintf(s.err, "took %s\n", s.now().Sub(began).Round(time.Millisecond))
	}
	var exit exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	case ctx.Err() != nil && !errors.Is(err, errInterrupted):
		err = errInterrupted
	case client.IsUnauthenticated(err), client.IsUnreachable(err):
		err = c.explain(err)
	}
	// Read -o again: the command line may not have been parsed up to it.
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.ParseErrorsAllowlist.UnknownFlags = true
	flags.VarP(&c.format, "output", "o", "")
	flags.Usage = func() {}
	_ = flags.Parse(args) // its errors are reported already
	c.report(err)
	if cmd.Annotations[guestExit] != "" && !errors.Is(err, errInterrupted) {
		return exitOwn
	}
	code, _ := classify(err)
	return code
}

func (c *cli) command() *cobra.Command {
	root := &cobra.Command{
		Use:           "hatch",
		Short:         "Run microVMs on a Hatch server",
		Version:       programVersion(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Long: `hatch creates and runs virtual machines on a Hatch server.

The server is that of --url or --context, else of HATCH_URL or HATCH_CONTEXT, else
of the context that hatch login or hatch context use has chosen. Otherwise it is
the one on this machine: through its socket (HATCH_SOCKET, /run/hatch/hatchd.sock),
where root and the group hatch need no key, or at ` + defaultURL + `.

The API key is read from --key-file, HATCH_API_KEY (not with a context), the
context, the data directory of a server on this machine (HATCH_DATA_DIR/admin.key,
/var/lib/hatch/admin.key), or ~/.config/hatch/key. It is never taken from the
command line, which other users can read. admin.key is sent only if the hatchd of
that directory listens at the address itself, so that no tunnel or other program
gets it.

VMs, images, snapshots, templates and keys can be given by name, by id, or by
an unambiguous prefix of the id.

` + exitCodes,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, "%s", err) })
	flags := root.PersistentFlags()
	flags.StringVar(&c.url, "url", "", "the server's `address`, as https://HOST or unix:///PATH")
	flags.StringVar(&c.context, "context", "", "use the server and key of a saved `context`")
	flags.StringVar(&c.keyFile, "key-file", "", "read the API key from `file`")
	flags.VarP(&c.format, "output", "o", "`format`: table, wide, json, jsonl or yaml")
	flags.Var(templateFlag{c.printer}, "format", "print each object with a Go `template`, as '{{.id}} {{.name}}'; fields as with -o json")
	flags.BoolVar(&c.timing, "timing", false, "print the elapsed time to stderr")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formatNames, cobra.ShellCompDirectiveNoFileComp))

	root.AddGroup(
		&cobra.Group{ID: groupVMs, Title: "Virtual machines:"},
		&cobra.Group{ID: groupReach, Title: "Inside a VM:"},
		&cobra.Group{ID: groupNouns, Title: "Resources:"},
		&cobra.Group{ID: groupHost, Title: "Server and host:"},
	)
	c.addCommands(root)
	return root
}

func (c *cli) addCommands(root *cobra.Command) {
	events := eventCommands{c.printer, c.connection}
	snapshots := snapshotCommands{c.printer, c.connection}
	creates := createCommands{c.printer, c.connection}
	ssh := sshCommands{c.printer, c.connection}
	users := userCommands{c.printer, c.connection}
	routes := routeCommands{c.printer, c.connection}
	console := consoleCommand{c.printer, c.connection}
	grouped(root, groupVMs, vmCommands{c.printer, c.connection}.commands()...)
	execs := execCommands{c.printer, c.connection}
	grouped(root, groupVMs, creates.create(), creates.fork(), runCommand{creates, execs, console}.command(), snapshots.restore(),
		topCommand{c.printer, c.connection}.command(), events.events(), events.why())
	grouped(root, groupReach, execs.exec(), execs.execs(), ssh.ssh(), ssh.config(), ssh.certificate(), console.command(),
		logsCommand{c.printer, c.connection}.command(), cpCommand{c.printer, c.connection}.command(), routes.open(), routes.share(), forwardCommand{c.printer, c.connection}.command())
	grouped(root, groupNouns, imageCommands{c.printer, c.connection}.command(), snapshots.command(), templateCommands{c.printer, c.connection}.command(),
		users.command(), keyCommands{c.printer, c.connection}.command(), webhookCommands{c.printer, c.connection}.command(), routes.command(),
		quotaCommand{c.printer, c.connection}.command(), auditCommand{c.printer, c.connection}.command())
	server := serverCommands{c.printer, c.connection}
	saved := contextCommands{c.printer, c.connection}
	_ = root.RegisterFlagCompletionFunc("context", saved.complete)
	grouped(root, groupHost, saved.login(), saved.logout(), saved.command(), server.health(), server.info(), users.whoami(), server.version(), server.api(), e2bCommands{c.printer, c.connection}.command(), doctorCommand(c.printer), manCommand())
}

func grouped(root *cobra.Command, group string, commands ...*cobra.Command) {
	for _, cmd := range commands {
		cmd.GroupID = group
		root.AddCommand(cmd)
	}
}

// noun returns a command that only has subcommands. Its plural is an alias.
func noun(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Aliases: []string{use + "s"}, Short: short, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(commands...)
	return cmd
}
