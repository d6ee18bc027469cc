package ringmq.rig;

import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Supplier;
import java.util.stream.Stream;

/**
 * Starts the servers that the tests talk to, on loopback. System properties choose what they are:
 *
 * <ul>
 * <li>{@code rig}: {@code ringmq} (default) or {@code java}, the stock servers of RocketMQ 5.5.0;
 * <li>{@code ringmq.bin}, or the environment's {@code RINGMQ_BIN}: the binary; {@code target/release/ringmq} by default;
 * <li>{@code namesrv} and {@code broker}: addresses of servers that already run, for {@link #shared}.
 * </ul>
 */
public final class Rig {
    /** What a server is. */
    public enum Kind { RINGMQ, JAVA }

    /** The shortest that RocketMQ allows: a NameServer that comes back knows its brokers after this. */
    private static final int REGISTER_INTERVAL_MS = 10_000;
    /** How long a RingMQ that stops waits for its disk: what it waits for by default is no time on a slow machine. */
    private static final String STOP_TIMEOUT = "process.stop_timeout_ms = 50000";
    /** How long a stock broker that is up may take to be registered: it tries again every ten seconds. */
    private static final Duration REGISTERED_MAX = Duration.ofSeconds(60);
    private static final AtomicInteger NEXT_NODE = new AtomicInteger(1);
    // Below the kernel's range for outgoing connections; spread by pid, so that two runs beside each other rarely meet.
    private static int nextPort = 20_000 + (int) (ProcessHandle.current().pid() * 40 % 12_000);
    private static Node shared;

    static {
        // Data of this run; what a killed run left goes when the next one starts.
        delete(build().resolve("data"));
        delete(build().resolve("servers"));
    }

    /** The kind under test. */
    public static Kind kind() {
        return Kind.valueOf(property("rig", "ringmq").toUpperCase(Locale.ROOT));
    }

    /** A NameServer and a broker that many tests share: made at the first call, gone with this JVM. */
    public static synchronized Node shared() {
        if (shared == null) {
            String namesrv = property("namesrv", "");
            String broker = property("broker", namesrv.replaceFirst(":\\d+$", ":10911"));
            shared = namesrv.isEmpty() ? dev() : new Node(kind(), namesrv, broker, dir("none"), List.of());
        }
        return shared;
    }

    /** A NameServer and a broker of one's own, called {@code broker-a} in {@code DefaultCluster}. */
    public static Node dev() {
        int namesrv = port();
        int broker = port();
        Path dir = dir("dev");
        if (kind() == Kind.JAVA) {
            return new Node(Kind.JAVA, address(namesrv), address(broker), dir, List.of(
                javaNamesrv(dir.resolve("namesrv"), namesrv),
                javaBroker(dir.resolve("broker"), Map.of(), "DefaultCluster", "broker-a", address(namesrv), broker)));
        }
        return new Node(Kind.RINGMQ, address(namesrv), address(broker), dir, List.of(() -> Server.start(
            List.of(ringmq(), "dev", "--data", dir.toString(), "--namesrv-port", "" + namesrv, "--broker-port", "" + broker,
                "--flush", "sync", "--cores", "2", "--set", STOP_TIMEOUT.replace(" ", "")),
            log(dir), line -> line.startsWith("ready "))));
    }

    /** A NameServer alone. */
    public static Node namesrv(Kind kind) {
        int port = port();
        Path dir = dir("namesrv");
        return new Node(kind, address(port), null, dir, List.of(kind == Kind.JAVA
            ? javaNamesrv(dir, port)
            : ringmq("namesrv", dir,
                "namesrv.listen = \"127.0.0.1\"",
                "namesrv.port = " + port,
                "namesrv.kv_path = \"" + dir + "/kv.json\"")));
    }

    /** A broker alone, which registers with every one of {@code namesrvs}. */
    public static Node broker(Kind kind, String cluster, String name, String... namesrvs) {
        return broker(kind, Map.of(), cluster, name, namesrvs);
    }

    /** The same; a stock broker starts with these settings. RingMQ takes such ones once it runs, by UPDATE_BROKER_CONFIG (25). */
    public static Node broker(Kind kind, Map<String, String> javaSettings, String cluster, String name, String... namesrvs) {
        int port = port();
        Path dir = dir(name);
        String joined = String.join(";", namesrvs);
        return new Node(kind, joined, address(port), dir, List.of(kind == Kind.JAVA
            ? javaBroker(dir, javaSettings, cluster, name, joined, port)
            : ringmq("broker", dir,
                "broker.cluster = \"" + cluster + "\"",
                "broker.name = \"" + name + "\"",
                "broker.listen = \"127.0.0.1\"",
                "broker.ip1 = \"127.0.0.1\"",
                "broker.port = " + port,
                "broker.namesrv = \"" + joined + "\"",
                "broker.register_interval_ms = " + REGISTER_INTERVAL_MS,
                "log.dir = \"" + dir + "/data\"",
                STOP_TIMEOUT,
                // Some of these run beside each other: small files are ready soon.
                "log.segment_bytes = \"64MiB\"",
                // How full the machine's disk is does not concern them.
                "log.disk_free_percent_min = 0",
                "log.prepare_bytes = \"64MiB\"")));
    }

    /** The tests' own directory, where {@code mqadmin} and {@code java-broker} are. */
    public static Path tests() {
        return Path.of(property("tests.dir", "..")).toAbsolutePath().normalize();
    }

    private static Supplier<Server> ringmq(String command, Path dir, String... config) {
        Path file = dir.resolve("ringmq.toml");
        return () -> {
            try {
                Files.createDirectories(dir);
                Files.write(file, Arrays.asList(config));
            } catch (IOException e) {
                throw new UncheckedIOException(e);
            }
            return Server.start(List.of(ringmq(), command, "-c", file.toString()), log(dir),
                line -> line.startsWith("ready "));
        };
    }

    private static Supplier<Server> javaNamesrv(Path dir, int port) {
        return javaServer(dir, "--only", "namesrv", "--namesrv-port", "" + port, "--light");
    }

    private static Supplier<Server> javaBroker(Path dir, Map<String, String> settings, String cluster, String name, String namesrv, int port) {
        // On a busy machine a request may well wait longer than the 200 ms after which a stock broker refuses it.
        List<String> options = new ArrayList<>(List.of("--only", "broker", "--port", "" + port, "--cluster", cluster, "--name", name,
            "--namesrv", namesrv, "--heap", "512m", "--light", "--set", "waitTimeMillsInSendQueue=15000"));
        settings.forEach((key, value) -> options.addAll(List.of("--set", key + "=" + value)));
        Supplier<Server> launch = javaServer(dir, options.toArray(String[]::new));
        // It says that it is up before it is registered.
        return () -> {
            Server server = launch.get();
            for (String address : namesrv.split(";")) {
                Until.holds(REGISTERED_MAX, name + " is registered with " + address, () -> hasRoute(address, name));
            }
            return server;
        };
    }

    // With `--only` the script becomes the JVM, so that the process we kill is the server.
    private static Supplier<Server> javaServer(Path dir, String... options) {
        List<String> command = Stream.concat(Stream.of(tests().resolve("java-broker").toString(), "--dir", dir.toString()),
            Arrays.stream(options)).toList();
        return () -> Server.start(command, log(dir), line -> line.contains("boot success"));
    }

    /** Whether the NameServer has a route for the topic: a bare GET_ROUTEINFO_BY_TOPIC (105). A broker's name is one of its topics. */
    private static boolean hasRoute(String namesrv, String topic) throws IOException {
        String[] parts = namesrv.split(":");
        byte[] header = ("{\"code\":105,\"flag\":0,\"language\":\"JAVA\",\"opaque\":1,\"version\":513,\"extFields\":{\"topic\":\"" + topic + "\"}}")
            .getBytes(StandardCharsets.UTF_8);
        try (Socket socket = new Socket(parts[0], Integer.parseInt(parts[1]))) {
            DataOutputStream out = new DataOutputStream(socket.getOutputStream());
            out.writeInt(4 + header.length);
            out.writeInt(header.length);
            out.write(header);
            DataInputStream in = new DataInputStream(socket.getInputStream());
            in.readInt();
            byte[] answer = in.readNBytes(in.readInt());
            return new String(answer, StandardCharsets.UTF_8).contains("\"code\":0,");
        }
    }

    private static String ringmq() {
        // Relative to the repository, wherever Maven runs the tests.
        String given = property("ringmq.bin", System.getenv().getOrDefault("RINGMQ_BIN", ""));
        Path path = tests().resolveSibling(given.isEmpty() ? "target/release/ringmq" : given);
        if (!Files.isExecutable(path)) {
            throw new AssertionError("no binary at " + path + ": build it, or name it with -Dringmq.bin or RINGMQ_BIN");
        }
        return path.toString();
    }

    /** A port that is free now, together with the neighbours a broker takes: two below and one above. */
    private static synchronized int port() {
        while (true) {
            nextPort = 20_000 + (nextPort - 20_000 + 4) % 12_000;
            try (ServerSocket fast = bound(nextPort - 2); ServerSocket own = bound(nextPort); ServerSocket ha = bound(nextPort + 1)) {
                return own.getLocalPort();
            } catch (IOException taken) {
                continue;
            }
        }
    }

    private static ServerSocket bound(int port) throws IOException {
        ServerSocket socket = new ServerSocket();
        socket.bind(new InetSocketAddress("127.0.0.1", port));
        return socket;
    }

    private static String address(int port) {
        return "127.0.0.1:" + port;
    }

    /** A new directory's path; its server makes it. */
    private static Path dir(String name) {
        return build().resolve("data").resolve(NEXT_NODE.getAndIncrement() + "-" + name);
    }

    private static Path log(Path dir) {
        Path data = build().resolve("data");
        return build().resolve("servers").resolve(data.relativize(dir).toString().replace('/', '-') + ".log");
    }

    private static Path build() {
        return Path.of(property("build.dir", "target")).toAbsolutePath().normalize();
    }

    static void delete(Path tree) {
        if (!Files.exists(tree)) {
            return;
        }
        try (Stream<Path> paths = Files.walk(tree)) {
            paths.sorted(Comparator.reverseOrder()).forEach(path -> path.toFile().delete());
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    // Maven passes properties that were not set as empty ones.
    private static String property(String name, String otherwise) {
        String value = System.getProperty(name, "");
        return value.isEmpty() ? otherwise : value;
    }

    private Rig() {}
}
