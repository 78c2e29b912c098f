package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

var userKind = kind[api.User]{
	noun: "user", ls: "hatch user ls",
	list: (*client.Client).ListUsers,
	name: func(u api.User) named { return named{u.ID, u.Name} },
}

// userCommands are hatch user and hatch whoami.
type userCommands struct {
	*printer
	*connection
}

func (c userCommands) command() *cobra.Command {
	common := nounCommands[api.User]{
		printer: c.printer, connection: c.connection, kind: userKind, get: (*client.Client).GetUser, table: c.table,
	}
	show := common.inspectCommand()
	show.Use, show.Aliases = "show user", []string{"inspect"}
	return noun("user", "Manage users, as an admin",
		c.createCommand(), common.lsCommand("List users"), show, c.setCommand(), c.rmCommand(common))
}

func (c userCommands) table(users []api.User, wide bool) table {
	t := table{head: []string{"ID", "NAME", "ROLE", "STATE", "AGE"}}
	if wide {
		t.head = append(t.head, "CHANGED", "SUBJECT")
	}
	for _, u := range users {
		state := "enabled"
		switch {
		case u.Deleting:
			state = "deleting"
		case u.Disabled:
			state = "disabled"
		}
		cells := []string{u.ID, u.Name, u.Role, state, c.age(u.CreatedAt)}
		if wide {
			cells = append(cells, c.age(u.UpdatedAt)+" ago", u.OIDCSubject)
		}
		t.row(cells...)
	}
	return t
}

func (c userCommands) createCommand() *cobra.Command {
	body := api.CreateUser{}
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a user, who has no key yet, and print its id", Args: oneArg("name"),
		Example: "  hatch user create alice && hatch key create laptop --user alice",
		RunE: func(cmd *cobra.Command, args []string) error {
			server, err := c.client()
			if err != nil {
				return err
			}
			body.Name = args[0]
			u, err := server.CreateUser(cmd.Context(), body)
			if err != nil {
				return fmt.Errorf("cannot create the user: %w", err)
			}
			return c.printLine(u, u.ID)
		},
	}
	cmd.Flags().StringVar(&body.Role, "role", "", "what it may do: member (default), or admin, which manages users, too")
	cmd.Flags().StringVar(&body.OIDCSubject, "oidc-subject", "", "`subject` of the trusted issuer whose tokens are the user's, also one whose user was deleted")
	cmd.MarkFlagsMutuallyExclusive("role", "oidc-subject")
	return cmd
}

func (c userCommands) setCommand() *cobra.Command {
	var name, role string
	var disable, enable bool
	cmd := &cobra.Command{
		Use: "set USER", Short: "Change a user: its name, its role, and whether its keys are refused", Args: oneArg("user"),
		Long:              "Change a user. The keys of one that is disabled are refused at once, and its open streams end; its VMs run on.",
		Example:           "  hatch user set alice --disable\n  hatch user set alice --enable --role admin",
		ValidArgsFunction: userKind.completeFirst(c.connection),
		RunE: func(cmd *cobra.Command, args []string) error {
			server, err := c.client()
			if err != nil {
				return err
			}
			var body api.UpdateUser
			if cmd.Flags().Changed("name") {
				body.Name = &name
			}
			if cmd.Flags().Changed("role") {
				body.Role = &role
			}
			if disable || enable {
				body.Disabled = &disable
			}
			if body == (api.UpdateUser{}) {
				return usage(cmd, "%s changes nothing without a flag", cmd.CommandPath())
			}
			found, err := userKind.find(cmd.Context(), server, args[0])
			if err == nil {
				found, err = server.UpdateUser(cmd.Context(), found.ID, body)
			}
			if err != nil {
				return fmt.Errorf("cannot change user %s: %w", args[0], err)
			}
			return c.printLine(found, found.ID)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&name, "name", "", "new name")
	flags.StringVar(&role, "role", "", "new role: member or admin")
	flags.BoolVar(&disable, "disable", false, "refuse its keys")
	flags.BoolVar(&enable, "enable", false, "accept its keys again")
	cmd.MarkFlagsMutuallyExclusive("disable", "enable")
	return cmd
}

func (c userCommands) rmCommand(common nounCommands[api.User]) *cobra.Command {
	var cascade bool
	rm := common.rmCommand()
	rm.Long = "Delete users. One that owns more than keys is deleted with --cascade only: then all that it owns is deleted first."
	rm.Flags().BoolVar(&cascade, "cascade", false, "delete its VMs, snapshots, images, templates, webhooks and routes, too")
	rm.RunE = func(cmd *cobra.Command, refs []string) error {
		server, err := c.client()
		if err != nil {
			return err
		}
		return forEach(c.printer, cmd, refs, "remove", func(r *results, ref string) error {
			found, err := userKind.find(cmd.Context(), server, ref)
			if err == nil {
				err = server.DeleteUser(cmd.Context(), found.ID, cascade)
			}
			if err != nil {
				return err
			}
			return r.addDeleted(userKind.name(found), ref)
		})
	}
	return rm
}

func (c userCommands) whoami() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Show the user and the scopes of the key that hatch uses", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			server, err := c.client()
			if err != nil {
				return err
			}
			me, err := server.Me(cmd.Context())
			if err != nil {
				return fmt.Errorf("cannot ask who this is: %w", err)
			}
			return c.printOne(me, func() {
				fmt.Fprintf(c.out, "user    %s (%s)\nrole    %s\n", clean(me.User.Name), clean(me.User.ID), clean(me.Role))
				if me.Key != nil {
					fmt.Fprintf(c.out, "key     %s (%s)\n", clean(me.Key.Name), clean(me.Key.ID))
				}
				fmt.Fprintf(c.out, "scopes  %s\n", clean(strings.Join(me.Scopes, " ")))
				if me.ExpiresAt != nil {
					fmt.Fprintf(c.out, "until   %s\n", me.ExpiresAt)
				}
			})
		},
	}
}
