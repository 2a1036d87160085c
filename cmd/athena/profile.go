package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/athena-pipelines/athena/pkg/sdk"
)

const environmentHelp = `Where the server is and which key to use is taken from, first come first served:

  --profile NAME (or ATHENA_PROFILE)   that profile
  --url and --key-file                 as given
  ATHENA_URL and ATHENA_KEY            as set
  the default profile                  if there is a profile file

A key is only ever sent to the server that it was given with: a profile's key
goes to the profile's URL. Without any of these the server is looked for at
http://127.0.0.1:4052.

The profile file is profiles.yaml in ATHENA_CONFIG_DIR, else in athena below
XDG_CONFIG_HOME, else in ~/.config/athena. It must be readable by its owner
alone (chmod 600):

  default: prod
  profiles:
    prod:
      url: https://athena.example.com
      key: ath_…
      client: shop        # stands for --client

ATHENA_CLIENT stands for --client. NO_COLOR switches colours off.
`

const defaultURL = "http://127.0.0.1:4052"

// A profile is a server and how to speak to it.
type profile struct {
	URL    string `yaml:"url"`
	Key    string `yaml:"key"`
	Client string `yaml:"client"`
}

type profiles struct {
	Default  string             `yaml:"default"`
	Profiles map[string]profile `yaml:"profiles"`
}

// connection decides which server to speak to.
func (p *program) connection() (profile, error) {
	if name := cmp.Or(p.profile, p.getenv("ATHENA_PROFILE")); name != "" {
		if p.server != "" || p.keyFile != "" {
			return profile{}, usagef("--profile goes without --url and --key-file; a profile names both")
		}
		return p.named(name)
	}
	c := profile{URL: p.getenv("ATHENA_URL"), Key: p.getenv("ATHENA_KEY")}
	if p.server != "" {
		if c.URL != "" && c.URL != p.server {
			c.Key = "" // it belongs to the other server
		}
		c.URL = p.server
	}
	if p.keyFile != "" {
		text, err := readPrivate(p.keyFile)
		if err != nil {
			return profile{}, err
		}
		c.Key = strings.TrimSpace(string(text))
	}
	if c.URL == "" && c.Key == "" {
		return p.named("")
	}
	c.URL = cmp.Or(c.URL, defaultURL)
	return c, nil
}

// named returns a profile; the default one if name is empty.
func (p *program) named(name string) (profile, error) {
	path := p.profilesPath()
	all, err := loadProfiles(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && name == "":
		return profile{URL: defaultURL}, nil
	case errors.Is(err, fs.ErrNotExist):
		return profile{}, usagef("there is no profile %q: %s does not exist", name, path)
	case err != nil:
		return profile{}, err
	}
	name = cmp.Or(name, all.Default)
	if name == "" {
		return profile{URL: defaultURL}, nil
	}
	chosen, ok := all.Profiles[name]
	if !ok {
		return profile{}, usagef("there is no profile %q in %s; it has %s", name, path, strings.Join(slices.Sorted(maps.Keys(all.Profiles)), ", "))
	}
	chosen.URL = cmp.Or(chosen.URL, defaultURL)
	return chosen, nil
}

func (p *program) profilesPath() string {
	if dir := p.getenv("ATHENA_CONFIG_DIR"); dir != "" {
		return filepath.Join(dir, "profiles.yaml")
	}
	base := cmp.Or(p.getenv("XDG_CONFIG_HOME"), filepath.Join(p.getenv("HOME"), ".config"))
	return filepath.Join(base, "athena", "profiles.yaml")
}

func loadProfiles(path string) (all profiles, err error) {
	text, err := readPrivate(path)
	if err != nil {
		return all, err
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&all); err != nil {
		return all, fmt.Errorf("%s: %w", path, err)
	}
	return all, nil
}

// readPrivate reads a file that holds a secret, and refuses one that others
// may read.
func readPrivate(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("%s holds a key and may be read by others (mode %04o); make it private with: chmod 600 %s", path, mode, path)
	}
	return os.ReadFile(path)
}

// api is the server that the command line speaks to.
func (p *program) api() (*sdk.API, error) {
	c, err := p.connection()
	if err != nil {
		return nil, err
	}
	return sdk.New(c.URL, c.Key, sdk.Options{UserAgent: "athena-cli"})
}

// clientName is the logical client that a command is for.
func (p *program) clientName(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	c, err := p.connection()
	if err != nil {
		return "", err
	}
	name := cmp.Or(p.getenv("ATHENA_CLIENT"), c.Client)
	if name == "" {
		return "", usagef("no client is named; give --client NAME, or set ATHENA_CLIENT")
	}
	return name, nil
}

// clientFlag adds --client, whose values the shell completes from the server.
func (p *program) clientFlag(cmd *cobra.Command, to *string, what string) {
	cmd.Flags().StringVarP(to, "client", "c", "", what)
	must(cmd.RegisterFlagCompletionFunc("client", p.completeClients))
}

func (p *program) completeClients(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	api, err := p.api()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer api.Close()
	clients, err := api.Admin().Clients(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := make([]string, len(clients))
	for i, c := range clients {
		names[i] = c.Name + "\t" + string(c.Engine()) + ", " + string(c.Lifecycle)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeClient completes the one argument of a command.
func (p *program) completeClient(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return p.completeClients(cmd, args, toComplete)
}

// completeKey completes the one argument of a command with the ids of keys.
func (p *program) completeKey(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	api, err := p.api()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer api.Close()
	keys, err := api.Admin().Keys(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ids := make([]string, len(keys))
	for i, k := range keys {
		ids[i] = k.ID + "\t" + k.Name
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

func (p *program) completeProfiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	all, err := loadProfiles(p.profilesPath())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return slices.Sorted(maps.Keys(all.Profiles)), cobra.ShellCompDirectiveNoFileComp
}
