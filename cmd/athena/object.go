package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"mime"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

func (p *program) objectCommand() *cobra.Command {
	var client string
	cmd := &cobra.Command{
		Use:   "object",
		Short: "List, read and write the objects of a client's bucket",
		Long: `Keys are relative to the client's prefix. A key is text of segments parted by "/",
none of them empty, "." or "..".`,
		Example: `  athena object ls --client lake orders/
  athena object put --client lake orders/today.csv today.csv
  athena object get --client lake orders/today.csv > today.csv
  athena object presign --client lake orders/today.csv --expires 1h`,
	}
	with := func(do func(context.Context, *sdk.Client, []string) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) error {
			name, err := p.clientName(client)
			if err != nil {
				return err
			}
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			return do(cmd.Context(), api.Client(name), args)
		}
	}
	all := []*cobra.Command{p.objectList(with), p.objectGet(with), p.objectPut(with), p.objectCopy(with), p.objectRemove(with), p.objectHead(with), p.objectPresign(with)}
	for _, c := range all {
		p.clientFlag(c, &client, "client whose bucket it is (ATHENA_CLIENT)")
	}
	cmd.AddCommand(all...)
	return cmd
}

// with makes the function of a command of one that is given the client.
type with func(func(context.Context, *sdk.Client, []string) error) func(*cobra.Command, []string) error

func (p *program) objectList(with with) *cobra.Command {
	var recursive bool
	var limit int
	cmd := &cobra.Command{
		Use:   "ls [PREFIX]",
		Short: "List objects, and folders unless all are asked for",
		Args:  cobra.MaximumNArgs(1),
		RunE: with(func(ctx context.Context, c *sdk.Client, args []string) error {
			l := driver.ObjectList{Prefix: strings.Join(args, ""), Delimiter: "/"}
			if recursive {
				l.Delimiter = ""
			}
			return p.listObjects(ctx, c, l, limit)
		}),
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "list what is in folders as well")
	cmd.Flags().IntVar(&limit, "limit", 0, "stop after so many (0: none)")
	return cmd
}

// listObjects writes page after page: a line of JSON for each with --json, else
// columns.
func (p *program) listObjects(ctx context.Context, c *sdk.Client, l driver.ObjectList, limit int) error {
	for n := 0; ; {
		l.Limit = 1000
		if limit > 0 {
			l.Limit = min(l.Limit, limit-n)
		}
		page, err := c.Objects(ctx, l)
		if err != nil {
			return err
		}
		for _, prefix := range page.Prefixes {
			if p.asJSON {
				err = writeLine(p.stdout, map[string]string{"prefix": prefix})
			} else {
				_, err = fmt.Fprintf(p.stdout, "%20s  %12s  %s\n", "", "", prefix)
			}
			if err != nil {
				return err
			}
		}
		for _, o := range page.Objects {
			if p.asJSON {
				err = writeLine(p.stdout, o)
			} else {
				_, err = fmt.Fprintf(p.stdout, "%20s  %12d  %s\n", o.Modified.Format(time.RFC3339), o.Bytes, o.Key)
			}
			if err != nil {
				return err
			}
		}
		n += len(page.Objects) + len(page.Prefixes)
		if page.Next == "" || limit > 0 && n >= limit {
			return nil
		}
		l.After = page.Next
	}
}

func (p *program) objectGet(with with) *cobra.Command {
	var part string
	cmd := &cobra.Command{
		Use:   "get KEY [FILE]",
		Short: "Read an object to a file, or to standard output",
		Args:  cobra.RangeArgs(1, 2),
		RunE: with(func(ctx context.Context, c *sdk.Client, args []string) error {
			read, err := parseRange(part)
			if err != nil {
				return err
			}
			body, err := c.ReadObject(ctx, args[0], read)
			if err != nil {
				return err
			}
			defer body.Close()
			if len(args) == 1 || args[1] == "-" {
				_, err := io.Copy(p.stdout, body)
				return err
			}
			return writeWhole(args[1], body)
		}),
	}
	cmd.Flags().StringVar(&part, "range", "", "bytes to read: 0-499, 500- or -500")
	return cmd
}

// parseRange reads bytes as HTTP has them, both ends included.
func parseRange(text string) (r driver.ObjectRead, err error) {
	if text == "" {
		return r, nil
	}
	first, last, ok := strings.Cut(text, "-")
	from, fromErr := strconv.ParseInt(cmp.Or(first, "0"), 10, 64)
	to, toErr := strconv.ParseInt(cmp.Or(last, "0"), 10, 64)
	switch {
	case !ok || fromErr != nil || toErr != nil || first == "" && to <= 0 || last != "" && first != "" && to < from:
		return r, usagef("--range is %q; write it as 0-499, 500- or -500", text)
	case first == "":
		return driver.ObjectRead{From: -to}, nil
	case last == "":
		return driver.ObjectRead{From: from}, nil
	}
	return driver.ObjectRead{From: from, To: to + 1}, nil
}

// writeWhole makes a file that is there whole, or as it was before.
func writeWhole(name string, body io.Reader) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := io.Copy(f, body); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// writeFlags are those of the commands that write.
type writeFlags struct {
	contentType, match string
	metadata           map[string]string
	fresh              bool
}

func (w *writeFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&w.contentType, "content-type", "", "media type to keep with the object")
	f.StringToStringVar(&w.metadata, "meta", nil, "metadata to keep with the object, as name=value")
	f.BoolVar(&w.fresh, "if-absent", false, "fail if there is an object already")
	f.StringVar(&w.match, "if-match", "", "fail unless the object has this ETag")
}

func (w *writeFlags) write() driver.ObjectWrite {
	return driver.ObjectWrite{ContentType: w.contentType, Metadata: w.metadata, IfNoneMatch: w.fresh, IfMatch: strings.Trim(w.match, `"`)}
}

func (p *program) objectPut(with with) *cobra.Command {
	var w writeFlags
	cmd := &cobra.Command{
		Use:   "put KEY FILE",
		Short: "Store a file, or standard input with -, as an object",
		Args:  cobra.ExactArgs(2),
		RunE: with(func(ctx context.Context, c *sdk.Client, args []string) error {
			key, write := args[0], w.write()
			body := p.stdin
			if args[1] != "-" {
				f, err := os.Open(args[1])
				if err != nil {
					return err
				}
				defer f.Close()
				info, err := f.Stat()
				if err != nil {
					return err
				}
				if info.IsDir() {
					return usagef("%s is a directory; name a file", args[1])
				}
				body, write.Bytes = f, info.Size()
				if strings.HasSuffix(key, "/") { // into a folder, under the file's name
					key += filepath.Base(args[1])
				}
			}
			write.ContentType = cmp.Or(write.ContentType, mime.TypeByExtension(path.Ext(key)))
			o, err := c.WriteObject(ctx, key, body, write)
			if err != nil {
				return err
			}
			return p.say(o, "%s has %d bytes", o.Key, o.Bytes)
		}),
	}
	w.add(cmd)
	return cmd
}

func (p *program) objectCopy(with with) *cobra.Command {
	var w writeFlags
	cmd := &cobra.Command{
		Use:   "cp FROM TO",
		Short: "Copy an object within the bucket",
		Args:  cobra.ExactArgs(2),
		RunE: with(func(ctx context.Context, c *sdk.Client, args []string) error {
			to := args[1]
			if strings.HasSuffix(to, "/") {
				to += path.Base(args[0])
			}
			o, err := c.CopyObject(ctx, args[0], to, w.write())
			if err != nil {
				return err
			}
			return p.say(o, "%s was copied to %s", args[0], o.Key)
		}),
	}
	w.add(cmd)
	return cmd
}

func (p *program) objectRemove(with with) *cobra.Command {
	var recursive bool
	cmd := &cobra.Command{
		Use:   "rm KEY...",
		Short: "Remove objects",
		Long:  "Removes objects; one that is not there is gone too. With -r the arguments are prefixes, and all below them goes.",
		Args:  cobra.MinimumNArgs(1),
		RunE: with(func(ctx context.Context, c *sdk.Client, args []string) error {
			n := 0
			remove := func(key string) error {
				if err := c.DeleteObject(ctx, key); err != nil {
					return err
				}
				n++
				return nil
			}
			for _, arg := range args {
				if !recursive {
					if err := remove(arg); err != nil {
						return err
					}
					continue
				}
				if arg == "" {
					return athena.Errorf(athena.CodeInvalidRequest, "the prefix is empty, which is everything; name what is to go").At("prefix")
				}
				for l := (driver.ObjectList{Prefix: arg, Limit: 1000}); ; {
					page, err := c.Objects(ctx, l)
					if err != nil {
						return err
					}
					for _, o := range page.Objects {
						if err := remove(o.Key); err != nil {
							return err
						}
					}
					if page.Next == "" {
						break
					}
					l.After = page.Next
				}
			}
			return p.say(map[string]int{"removed": n}, "%d removed", n)
		}),
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "remove all objects below these prefixes")
	return cmd
}

func (p *program) objectHead(with with) *cobra.Command {
	return &cobra.Command{
		Use:   "head KEY",
		Short: "Describe an object",
		Args:  cobra.ExactArgs(1),
		RunE: with(func(ctx context.Context, c *sdk.Client, args []string) error {
			o, err := c.Object(ctx, args[0])
			if err != nil {
				return err
			}
			return p.show(o, func(w io.Writer) {
				fmt.Fprintf(w, "key       %s\nbytes     %d\nmodified  %s\netag      %s\ntype      %s\n", o.Key, o.Bytes, o.Modified.Format(time.RFC3339), o.ETag, o.ContentType)
				if o.Checksum != "" {
					fmt.Fprintf(w, "checksum  %s\n", o.Checksum)
				}
				for _, name := range slices.Sorted(maps.Keys(o.Metadata)) {
					fmt.Fprintf(w, "meta      %s=%s\n", name, o.Metadata[name])
				}
			})
		}),
	}
}

func (p *program) objectPresign(with with) *cobra.Command {
	var w writeFlags
	var put bool
	var expires time.Duration
	cmd := &cobra.Command{
		Use:   "presign KEY",
		Short: "Make a URL that reads, or stores, an object without a key",
		Long: `Makes a URL of the bucket itself that reads an object, or with --put stores one,
until it expires. Whoever has the URL may use it. With --put, what --json shows as
headers must be sent too.`,
		Args: cobra.ExactArgs(1),
		RunE: with(func(ctx context.Context, c *sdk.Client, args []string) error {
			var signed driver.Presigned
			var err error
			if put {
				signed, err = c.PresignWrite(ctx, args[0], expires, w.write())
			} else {
				signed, err = c.PresignRead(ctx, args[0], expires)
			}
			if err != nil {
				return err
			}
			return p.say(signed, "%s", signed.URL)
		}),
	}
	w.add(cmd)
	cmd.Flags().BoolVar(&put, "put", false, "for storing, rather than reading")
	cmd.Flags().DurationVar(&expires, "expires", 15*time.Minute, "for how long it is good, at most 168h")
	return cmd
}
