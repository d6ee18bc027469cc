package ringmq.rig;

import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Supplier;

/** A NameServer, a broker, or both, with addresses and a directory that stay: it can be stopped or killed and started again. */
public final class Node implements AutoCloseable {
    /** How long one may take to stop after SIGTERM: a stock broker waits for some of its threads, and a machine may be slow. */
    private static final Duration STOP_MAX = Duration.ofSeconds(60);

    private final Rig.Kind kind;
    private final String namesrv;
    private final String broker;
    private final Path dir;
    private final List<Supplier<Server>> launches;
    private final List<Server> servers = new ArrayList<>();

    /** Starts the processes of {@code launches} in their order; none for servers that somebody else runs. All data is in {@code dir}. */
    Node(Rig.Kind kind, String namesrv, String broker, Path dir, List<Supplier<Server>> launches) {
        this.kind = kind;
        this.namesrv = namesrv;
        this.broker = broker;
        this.dir = dir;
        this.launches = launches;
        start();
    }

    /** Address of its NameServer; for a broker alone, of those it registers with, separated by semicolons. */
    public String namesrv() {
        return namesrv;
    }

    /** Address of its broker; null for a NameServer alone. */
    public String broker() {
        return broker;
    }

    /** Starts it again, at once, with the same addresses and the same data. */
    public void start() {
        if (!servers.isEmpty()) {
            throw new IllegalStateException("it still runs");
        }
        try {
            launches.forEach(launch -> servers.add(launch.get()));
        } catch (Throwable e) {
            close();
            throw e;
        }
    }

    /** SIGTERM, until it has ended. A RingMQ exits with 0. */
    public void stop() {
        while (!servers.isEmpty()) {
            Server server = servers.remove(servers.size() - 1);
            int code = server.stop(STOP_MAX);
            if (kind == Rig.Kind.RINGMQ && code != 0) {
                throw new AssertionError("exit code " + code + " after SIGTERM");
            }
        }
    }

    /** SIGKILL, until it has ended. */
    public void kill() {
        while (!servers.isEmpty()) {
            servers.remove(servers.size() - 1).kill();
        }
    }

    /** Kills it and deletes its data; what it printed stays. */
    @Override
    public void close() {
        kill();
        Rig.delete(dir);
    }
}
