package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/client"
)

// kind is one noun of the API: how its objects are listed and referred to.
type kind[T any] struct {
	noun  string
	ls    string // the command that lists them
	list  func(*client.Client, context.Context) ([]T, error)
	name  func(T) named
	about func(T) string // shown by completion; nil for nothing
}

// find returns the object that ref refers to.
func (k kind[T]) find(ctx context.Context, server *client.Client, ref string) (T, error) {
	all, err := k.list(server, ctx)
	if err != nil {
		var none T
		return none, err
	}
	return pickFrom(k, ref, all)
}

// completeTimeout bounds how long completion may take.
const completeTimeout = 2 * time.Second

// complete offers the names of all objects, or ids of those without one. If the
// server does not answer it offers nothing: completion shows no errors.
func (k kind[T]) complete(conn *connection) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ctx := cmd.Context()
		if ctx == nil {
			ctx = context.Background()
		}
		ctx, cancel := context.WithTimeout(ctx, completeTimeout)
		defer cancel()
		server, err := conn.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all, err := k.list(server, ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		found := make([]cobra.Completion, 0, len(all))
		for _, o := range all {
			n, about := k.name(o), ""
			if k.about != nil {
				about = k.about(o)
			}
			if n.name != "" {
				about = n.id + " " + about
			}
			found = append(found, cobra.CompletionWithDesc(clean(cmp.Or(n.name, n.id)), clean(about)))
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFirst is complete for the first argument, and nothing after it.
func (k kind[T]) completeFirst(conn *connection) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return k.complete(conn)(cmd, args, word)
	}
}

// nounCommands are the commands that all nouns have: ls, inspect and rm.
type nounCommands[T any] struct {
	*printer
	*connection
	kind[T]
	get    func(*client.Client, context.Context, string) (T, error)
	remove func(*client.Client, context.Context, string) error
	table  func(objects []T, wide bool) table
	check  func(T) error // before a removal; nil for none
}

func (c nounCommands[T]) lsCommand(short string) *cobra.Command {
	f := &listFlags{}
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: short, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := arranged[T](nil, f); err != nil { // before the first request
				return err
			}
			server, err := c.client()
			if err != nil {
				return err
			}
			all, err := c.list(server, cmd.Context())
			if err != nil {
				return fmt.Errorf("cannot list %ss: %w", c.noun, err)
			}
			return printListed(c.printer, f, all, c.name, c.table)
		},
	}
	f.add(c.printer, cmd)
	return cmd
}

func (c nounCommands[T]) inspectCommand() *cobra.Command {
	article := "a "
	if strings.ContainsRune("aeiou", rune(c.noun[0])) {
		article = "an "
	}
	return &cobra.Command{
		Use: "inspect " + c.noun, Short: "Show all fields of " + article + c.noun + ", as JSON", Args: oneArg(c.noun),
		ValidArgsFunction: c.complete(c.connection),
		RunE: func(cmd *cobra.Command, args []string) error {
			server, err := c.client()
			if err != nil {
				return err
			}
			found, err := c.find(cmd.Context(), server, args[0])
			if err == nil {
				found, err = c.get(server, cmd.Context(), c.name(found).id)
			}
			if err != nil {
				return fmt.Errorf("cannot inspect %s: %w", args[0], err)
			}
			return c.printInspected(cmd, found)
		},
	}
}

func (c nounCommands[T]) rmCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm " + c.noun + "...", Aliases: []string{"delete"}, Short: "Delete " + c.noun + "s", Args: someArgs(c.noun),
		ValidArgsFunction: c.complete(c.connection),
		RunE: func(cmd *cobra.Command, refs []string) error {
			server, err := c.client()
			if err != nil {
				return err
			}
			return forEach(c.printer, cmd, refs, "remove", func(r *results, ref string) error {
				found, err := c.find(cmd.Context(), server, ref)
				if err == nil && c.check != nil {
					err = c.check(found)
				}
				if err == nil {
					err = c.remove(server, cmd.Context(), c.name(found).id)
				}
				if err != nil {
					return err
				}
				return r.addDeleted(c.name(found), ref)
			})
		},
	}
}
