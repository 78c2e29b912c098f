package main

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// auditCommand is hatch audit.
type auditCommand struct {
	*printer
	*connection
}

func (c auditCommand) command() *cobra.Command {
	opts := client.AuditOptions{PageSize: pageSize}
	var since, until string
	var number int
	cmd := &cobra.Command{
		Use: "audit", Short: "Show who did what", Args: noArgs,
		Long: `Show who changed something, ran a command, read a file, opened a console or a
tunnel, or connected to a port of a VM: newest first. Admins see the records of
all users, others their own.`,
		Example: "  hatch audit --since 24h --outcome refused\n  hatch audit -n 0 -o jsonl > audit.jsonl",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if opts.Since, err = sinceTime(since, c.now()); err != nil {
				return usage(cmd, "%s", err)
			}
			if opts.Until, err = sinceTime(until, c.now()); err != nil {
				return usage(cmd, "%s", strings.Replace(err.Error(), "--since", "--until", 1))
			}
			if number < 0 {
				return usage(cmd, "--number takes a number of records, or 0 for all, not %d", number)
			}
			if number > 0 {
				opts.PageSize = min(opts.PageSize, number)
			}
			return c.show(cmd, opts, number)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.User, "user", "", "only what a `user` did")
	flags.StringVar(&opts.Key, "key", "", "only what was done with an API `key`")
	flags.StringVar(&opts.Operation, "op", "", "only an `operation`, as create-vm or ssh-session")
	flags.StringVar(&opts.Object, "object", "", "only what was done to the object with this `id`, or has made it")
	flags.StringVar(&opts.Outcome, "outcome", "", "only what has ended `so`: ok, refused or failed")
	flags.StringVar(&since, "since", "", "only since a `time`: how long ago, as 2h, or RFC 3339")
	flags.StringVar(&until, "until", "", "only before a `time`, given so")
	flags.IntVarP(&number, "number", "n", 100, "how many `records` to show, 0 for all")
	_ = cmd.RegisterFlagCompletionFunc("outcome", cobra.FixedCompletions([]string{"ok", "refused", "failed"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (c auditCommand) show(cmd *cobra.Command, opts client.AuditOptions, number int) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	var list []api.AuditRecord
	for r, err := range server.ListAudit(cmd.Context(), opts) {
		if err != nil {
			return fmt.Errorf("cannot show the audit log: %w", err)
		}
		if list = append(list, r); len(list) == number {
			break
		}
	}
	return printList(c.printer, list, func(wide bool) table {
		t := table{head: []string{"TIME", "USER", "KEY", "ADDRESS", "OPERATION", "OBJECT", "OUTCOME"}}
		if wide {
			t.head = append(t.head, "COUNT", "TOOK", "BYTES", "REQUEST")
		}
		for _, r := range list {
			t.row(c.cells(r, wide)...)
		}
		return t
	})
}

func (c auditCommand) cells(r api.AuditRecord, wide bool) []string {
	outcome := r.Outcome
	if r.Code != "" {
		outcome += " (" + r.Code + ")"
	}
	cells := []string{c.clock(r.At), cmp.Or(r.UserName, r.UserID), cmp.Or(r.KeyName, r.KeyID), r.Address, r.Operation, objects(r), outcome}
	if wide {
		cells = append(cells, strconv.FormatInt(r.Count, 10), fmt.Sprintf("%.3fs", float64(r.TookMS)/1000), strconv.FormatInt(r.Bytes, 10), r.RequestID)
	}
	return cells
}

// objects returns what a record is about, and what was made.
func objects(r api.AuditRecord) string {
	object := cmp.Or(r.Object, r.Noun)
	if r.Made != "" {
		object += " (" + r.Made + ")"
	}
	return object
}
