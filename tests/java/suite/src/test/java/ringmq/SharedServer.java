package ringmq;

import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import ringmq.rig.Node;
import ringmq.rig.Rig;

/** Tests that use the server all share, under names of their own, with clients of their own. */
abstract class SharedServer {
    final Node node = Rig.shared();
    Clients clients;

    @BeforeEach
    void open() {
        clients = new Clients(node.namesrv());
    }

    @AfterEach
    void close() {
        clients.close();
    }
}
