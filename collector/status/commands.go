package status

import (
	"fmt"
	"net/netip"
	"strings"

	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// A command can be pasted into a shell.
type command struct {
	Meaning, Line string
}

// destinationCommands returns the commands that show a pool in its namespace. There are none if the
// namespace can only be entered by a name that no shell should see.
func destinationCommands(n *scan.Namespace, d *pool.Destination) []command {
	enter, ok := enterCommand(n)
	if !ok {
		return nil
	}
	ports := n.TCP.Report.Settings.PortRange
	filter := fmt.Sprintf("src %s dst %s dport = :%d sport ge :%d sport le :%d",
		filterAddress(d.Source), filterAddress(d.Address.Addr()), d.Address.Port(), ports.Low, ports.High)
	return []command{
		{"Its ports by state", enter + "ss -Htan " + filter + " | awk '{print $1}' | sort | uniq -c"},
		{"Its ports by process, as root", enter + "ss -Htanp " + filter + ` | grep -o 'users:(("[^"]*",pid=[0-9]*' | sort | uniq -c`},
		{"The settings", enter + "sysctl " + sysctls(n.TCP.Report.Settings)},
	}
}

// filterAddress writes an address for ss(8). The index of an interface stays out of it: ss knows only
// names.
func filterAddress(a netip.Addr) string {
	if a.Is6() {
		return "'[" + a.WithZone("").String() + "]'"
	}
	return a.String()
}

// sysctls returns the names of the sysctls that Settings are made of.
func sysctls(s pool.Settings) string {
	names := []string{"ip_local_port_range", "ip_local_reserved_ports", "tcp_tw_reuse", "tcp_timestamps", "tcp_fin_timeout", "tcp_max_tw_buckets"}
	if s.TWReuseDelay > 0 {
		names = append(names, "tcp_tw_reuse_delay")
	}
	return "net.ipv4." + strings.Join(names, " net.ipv4.")
}

// enterCommand returns the beginning of a command that runs in a namespace.
func enterCommand(n *scan.Namespace) (prefix string, ok bool) {
	switch {
	case n.Name == scan.Self:
		return "", true
	case n.Path == "" || !isPlain(n.Path):
		return "", false
	default:
		return "nsenter --net=" + quote(n.Path) + " ", true
	}
}

// inside returns a command that runs a line for a shell in a namespace. It is empty if the line is, or if the namespace cannot
// be entered.
func inside(n *scan.Namespace, line string) string {
	enter, ok := enterCommand(n)
	switch {
	case !ok || line == "":
		return ""
	case enter != "" && strings.ContainsAny(line, ";|&$"):
		return enter + "sh -c " + quote(line)
	default:
		return enter + line
	}
}

// enterFirst says why there are no commands for a namespace.
func enterFirst(n *scan.Namespace) string {
	return fmt.Sprintf("Enter the network namespace with inode %d first: its path is not known, or no shell should see it.", n.Inode)
}

// quote writes a word for a shell.
func quote(word string) string {
	if strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-") == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// wrap breaks a command at blanks before parts of it, so that its lines fit a width where possible
// and it can still be pasted.
func wrap(line string, width int) []string {
	var lines []string
	for len(line) > width {
		at := -1
		for _, before := range []string{" | ", " && ", " || ", " dst ", " src ", " ss ", " sysctl ", " sport ge ", " --reply-", " net.ipv4."} {
			at = max(at, strings.LastIndex(line[:width-2], before))
		}
		if at <= 2 { // the indent
			break
		}
		lines = append(lines, line[:at]+` \`)
		line = "  " + line[at+1:]
	}
	return append(lines, line)
}
