//go:build linux

package sockiter

import (
	"encoding/binary"
	"slices"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// States of include/net/tcp_states.h that only the program sees.
const (
	tcpTimeWait   = 6  // also of FIN_WAIT2 mini-sockets
	tcpNewSynRecv = 12 // of a connection that is not yet accepted
)

// A record describes one socket. The remote port is in network byte order, and so are the
// addresses: IPv6 or IPv4-mapped. Other numbers are in the byte order of the host.
const (
	addressSize = 16

	recordState      = 0
	recordFlags      = 1
	recordPort       = 2
	recordRemotePort = 4 // two unused bytes follow
	recordInterface  = 8
	recordExpires    = 12 // in ticks, 0 if late
	recordLocal      = 16
	recordRemote     = recordLocal + addressSize
	recordCgroup     = recordRemote + addressSize
	recordStamp      = recordCgroup + 8 // four unused bytes follow
	recordSize       = recordStamp + 8
)

// Flags of a record.
const (
	flagBound = 1 << iota
	flagMini
	flagTimestamps
	flagV6Only
)

// Offsets of the variables of the program from the frame pointer.
const (
	frameRecord  = -recordSize
	frameExpires = frameRecord - 8
)

// Offsets of the port range in the value of its map, each a 16-bit number.
const (
	rangeLow  = 0
	rangeHigh = 2
	rangeSize = 4
)

// Offsets in the context, struct bpf_iter__tcp.
const (
	contextMeta   = 0
	contextSocket = 8
)

// Registers that survive a call.
const (
	regSeq    = asm.R6 // struct seq_file
	regSocket = asm.R7 // struct sock_common
	regState  = asm.R8
	regFlags  = asm.R9
)

// Labels of the program.
const (
	timeWait  = "time_wait"
	request   = "request"
	addresses = "addresses"
	bucket    = "bucket"
	expiry    = "expiry"
	ipv6      = "ipv6"
	dualStack = "dual_stack"
	write     = "write"
	end       = "end"
)

// instructions returns the program. The kernel runs it for each TCP socket. It writes a record for
// a socket whose local port lies in the range of the map ports. It leaves out a socket without a
// bucket: that has just given its port back.
func instructions(l layout, ports int) asm.Instructions {
	return slices.Concat(
		asm.Instructions{
			asm.LoadMem(regSeq, asm.R1, contextMeta, asm.DWord),
			asm.LoadMem(regSocket, asm.R1, contextSocket, asm.DWord),
			asm.JEq.Imm(regSocket, 0, end), // after the last socket
			load(regSeq, regSeq, l.seq),

			load(asm.R1, regSocket, l.port),
			asm.LoadMapValue(asm.R2, ports, 0),
			asm.LoadMem(asm.R3, asm.R2, rangeLow, asm.Half),
			asm.JLT.Reg(asm.R1, asm.R3, end),
			asm.LoadMem(asm.R3, asm.R2, rangeHigh, asm.Half),
			asm.JGT.Reg(asm.R1, asm.R3, end),
			store(recordPort, asm.R1, asm.Half),

			asm.Mov.Imm(regFlags, 0),
			asm.StoreImm(asm.RFP, frameRecord+recordExpires, 0, asm.Word),
			asm.StoreImm(asm.RFP, frameRecord+recordCgroup, 0, asm.Word),
			asm.StoreImm(asm.RFP, frameRecord+recordCgroup+4, 0, asm.Word),
			asm.StoreImm(asm.RFP, frameRecord+recordStamp, 0, asm.Word),
			asm.StoreImm(asm.RFP, frameRecord+recordStamp+4, 0, asm.Word),
			load(regState, regSocket, l.state),
			asm.JEq.Imm(regState, tcpTimeWait, timeWait),
			asm.JEq.Imm(regState, tcpNewSynRecv, request),

			asm.Mov.Reg(asm.R1, regSocket),
			asm.FnSkcToTcpSock.Call(),
			asm.JEq.Imm(asm.R0, 0, end), // this never happens, but the verifier does not know it
		},
		storeCgroup(l),
		setBound(l, l.bucket, addresses),
		asm.Instructions{
			asm.Ja.Label(addresses),

			asm.Mov.Reg(asm.R1, regSocket).WithSymbol(timeWait),
			asm.FnSkcToTcpTimewaitSock.Call(),
			asm.JEq.Imm(asm.R0, 0, end), // never
			asm.Mov.Imm(regFlags, flagMini),
			load(regState, asm.R0, l.substate),
			load(asm.R1, asm.R0, l.expires),
			asm.StoreMem(asm.RFP, frameExpires, asm.R1, asm.DWord),
			load(asm.R1, asm.R0, l.timestamp),
			store(recordStamp, asm.R1, asm.Word),
			asm.JEq.Imm(asm.R1, 0, bucket),
			asm.Or.Imm(regFlags, flagTimestamps),
		},
		label(bucket, setBound(l, l.timeWaitBucket, expiry)),
		asm.Instructions{
			asm.FnJiffies64.Call().WithSymbol(expiry),
			asm.LoadMem(asm.R1, asm.RFP, frameExpires, asm.DWord),
			asm.Sub.Reg(asm.R1, asm.R0),
			asm.JSLT.Imm(asm.R1, 0, addresses),
			store(recordExpires, asm.R1, asm.Word),
			asm.Ja.Label(addresses),

			// It has no bucket. That of its listener is bound.
			asm.Mov.Imm(regState, unix.BPF_TCP_SYN_RECV).WithSymbol(request),
			asm.Mov.Imm(regFlags, flagBound),

			load(asm.R1, regSocket, l.family).WithSymbol(addresses),
			asm.JEq.Imm(asm.R1, unix.AF_INET6, ipv6),
		},
		copyIPv4(l.local4, recordLocal),
		copyIPv4(l.remote4, recordRemote),
		asm.Instructions{
			asm.Ja.Label(write),

			load(asm.R1, regSocket, l.v6only).WithSymbol(ipv6),
			asm.And.Imm(asm.R1, l.v6only.mask),
			asm.JEq.Imm(asm.R1, 0, dualStack),
			asm.Or.Imm(regFlags, flagV6Only),
		},
		label(dualStack, copyIPv6(l.local6, recordLocal)),
		copyIPv6(l.remote6, recordRemote),
		asm.Instructions{
			store(recordState, regState, asm.Byte).WithSymbol(write),
			store(recordFlags, regFlags, asm.Byte),
			load(asm.R1, regSocket, l.remotePort),
			store(recordRemotePort, asm.R1, asm.Half),
			asm.StoreImm(asm.RFP, frameRecord+recordRemotePort+2, 0, asm.Half),
			load(asm.R1, regSocket, l.ifindex),
			store(recordInterface, asm.R1, asm.Word),

			// If the buffer is full, the kernel runs the program for this socket again.
			asm.Mov.Reg(asm.R1, regSeq),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, frameRecord),
			asm.Mov.Imm(asm.R3, recordSize),
			asm.FnSeqWrite.Call(),

			asm.Mov.Imm(asm.R0, 0).WithSymbol(end),
			asm.Return(),
		},
	)
}

// setBound sets flagBound unless connect() made the bucket, which has then two negative numbers
// (signed char). R0 points to the structure with the pointer to the bucket. next is the label of what comes
// next, if that is not what follows.
func setBound(l layout, bucket field, next string) asm.Instructions {
	const sign = 0x80
	return asm.Instructions{
		load(asm.R1, asm.R0, bucket),
		asm.JEq.Imm(asm.R1, 0, end),
		load(asm.R2, asm.R1, l.fastReuse),
		load(asm.R3, asm.R1, l.fastReusePort),
		asm.And.Reg(asm.R2, asm.R3),
		asm.And.Imm(asm.R2, sign),
		asm.JNE.Imm(asm.R2, 0, next),
		asm.Or.Imm(regFlags, flagBound),
	}
}

// storeCgroup stores the number of the control group of the socket that R0 points to. A pointer that
// is not valid reads as 0.
func storeCgroup(l layout) asm.Instructions {
	if l.cgroup[0].size == 0 {
		return nil
	}
	return asm.Instructions{
		load(asm.R1, asm.R0, l.cgroup[0]),
		load(asm.R1, asm.R1, l.cgroup[1]),
		load(asm.R1, asm.R1, l.cgroup[2]),
		store(recordCgroup, asm.R1, asm.DWord),
	}
}

// label gives the first instruction of a part of the program a label.
func label(name string, part asm.Instructions) asm.Instructions {
	part[0] = part[0].WithSymbol(name)
	return part
}

// copyIPv4 copies an IPv4 address of the socket to the record, as an IPv4-mapped one.
func copyIPv4(from field, to int16) asm.Instructions {
	prefix := binary.NativeEndian.Uint32([]byte{0, 0, 0xff, 0xff})
	return asm.Instructions{
		asm.StoreImm(asm.RFP, frameRecord+to, 0, asm.Word),
		asm.StoreImm(asm.RFP, frameRecord+to+4, 0, asm.Word),
		asm.StoreImm(asm.RFP, frameRecord+to+8, int64(int32(prefix)), asm.Word),
		load(asm.R1, regSocket, from),
		store(to+12, asm.R1, asm.Word),
	}
}

// copyIPv6 copies an IPv6 address of the socket to the record.
func copyIPv6(from field, to int16) asm.Instructions {
	var program asm.Instructions
	for i := 0; i < addressSize; i += 4 {
		program = append(program,
			load(asm.R1, regSocket, field{offset: from.offset + i, size: 4}),
			store(to+int16(i), asm.R1, asm.Word),
		)
	}
	return program
}

// load loads a field of the structure that from points to. Of a single bit, it loads the byte.
func load(to, from asm.Register, f field) asm.Instruction {
	size := map[int]asm.Size{bit: asm.Byte, 1: asm.Byte, 2: asm.Half, 4: asm.Word, 8: asm.DWord}[f.size]
	return asm.LoadMem(to, from, int16(f.offset), size)
}

// store stores a register in the record.
func store(to int16, from asm.Register, size asm.Size) asm.Instruction {
	return asm.StoreMem(asm.RFP, frameRecord+to, from, size)
}
